"""Galleries in other stores, read by their URLs for the commands of a client, which knows none of them. What the stores
are read with is imported when one is."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from gallery_upgrade.cli.galleries import OpenedStore
    from service.connectors.store import ExternalStore

_SAID_APART = ("label", "image_uri")


def read_store(url: str, rows: int, *, described: bool = False) -> "OpenedStore":
    """Open the store that a URL names, to be read in tables of about so many rows; `described` ones have what the store
    says of its items too, as metadata, and label and image_uri where it says them by these names.

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
    found.tables = _tables(store, rows, found.faults, described=described)
    return found


def _tables(store: "ExternalStore", rows: int, faults: list[str], *, described: bool) -> "Iterator[pa.Table]":
    """Give the rows range by range; one that the store refuses to give is left out, and said why."""
    from gallery_upgrade.arrays import vectors_table
    from service.connectors.store import StoreAway, StoreRefused, keep_open_ends

    try:
        for keys in keep_open_ends(store.bounds(rows)):
            try:
                found = store.read(keys)
                payloads = store.payloads(keys) if described else {}
            except StoreRefused as error:
                faults.append(error.message)
                continue
            if found.keys:
                table = vectors_table(found.keys, found.embedding, found.side_information)
                yield _with_descriptions(table, [payloads.get(key, {}) for key in found.keys]) if described else table
    except StoreAway as error:
        raise ValueError(error.message) from error
    finally:
        store.close()


def _with_descriptions(table: "pa.Table", payloads: "Sequence[dict[str, Any]]") -> "pa.Table":
    """Return a table with columns of what a store says of its rows."""
    import pyarrow as pa

    for name in _SAID_APART:
        texts = [payload.get(name) if isinstance(payload.get(name), str) else None for payload in payloads]
        table = table.append_column(name, pa.array(texts, pa.string()))
    metadata = [
        {name: value for name, value in payload.items() if name not in _SAID_APART or not isinstance(value, str)}
        for payload in payloads
    ]
    return table.append_column("metadata", pa.array([_as_json(each) for each in metadata], pa.string()))


def _as_json(payload: dict[str, Any]) -> str:
    """Return metadata as JSON: what JSON has no word for as text, and bytes, and numbers that are none, not at all."""
    kept = {name: value for name, value in payload.items() if value is not None and not isinstance(value, bytes)}
    return json.dumps({name: value for name, value in kept.items() if not _is_no_number(value)}, default=str)


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
