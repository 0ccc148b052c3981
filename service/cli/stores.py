"""Galleries in other stores, read by their URLs for the commands of a client, which knows none of them. What the stores
are read with is imported when one is."""

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from gallery_upgrade.cli.galleries import OpenedStore
    from service.connectors.store import ExternalStore


def read_store(url: str, rows: int) -> "OpenedStore":
    """Open the store that a URL names, to be read in tables of about so many rows.

    Raises ValueError where it cannot be opened or does not answer.
    """
    from gallery_upgrade.cli.galleries import OpenedStore
    from service.connectors.opening import open_store
    from service.connectors.store import StoreAway, StoreRefused

    try:
        store = open_store(url)
        description = asdict(store.describe())
    except (StoreAway, StoreRefused) as error:
        raise ValueError(error.message) from error
    found = OpenedStore(description, iter(()))
    found.tables = _tables(store, rows, found.faults)
    return found


def _tables(store: "ExternalStore", rows: int, faults: list[str]) -> "Iterator[pa.Table]":
    """Give the rows range by range; one that the store refuses to give is left out, and said why."""
    from gallery_upgrade.arrays import vectors_table
    from service.connectors.store import StoreAway, StoreRefused, keep_open_ends

    try:
        for keys in keep_open_ends(store.bounds(rows)):
            try:
                found = store.read(keys)
            except StoreRefused as error:
                faults.append(error.message)
                continue
            if found.keys:
                yield vectors_table(found.keys, found.embedding, found.side_information)
    except StoreAway as error:
        raise ValueError(error.message) from error
    finally:
        store.close()
