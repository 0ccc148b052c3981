"""Which module of this folder opens a URL, and a store's rows as Arrow tables."""

from collections.abc import Iterator
from importlib import import_module

import pyarrow as pa

from service.connectors.address import parse
from service.connectors.store import ExternalStore, NewSide, Rows, StoreRefused, Vectors, keep_open_ends

# By scheme: the module, whose `connect` returns the store, and what of pip's extras installs what it imports.
_MODULES = {
    "postgresql": ("pgvector", None),
    "postgres": ("pgvector", None),
    "file": ("files", None),
    "qdrant": ("qdrant", "qdrant"),
    "qdrant+http": ("qdrant", "qdrant"),
    "qdrant+https": ("qdrant", "qdrant"),
    "milvus": ("milvus", "milvus"),
    "milvus+http": ("milvus", "milvus"),
    "milvus+https": ("milvus", "milvus"),
    "chroma": ("chroma", "chroma"),
    "chroma+http": ("chroma", "chroma"),
    "chroma+https": ("chroma", "chroma"),
    "lancedb": ("lance", "lancedb"),
}


def open_store(url: str, new: NewSide | None = None) -> ExternalStore:
    """Return the store that a URL names, to be upgraded to `new`; without it, it can be described, read and searched.

    Raises `StoreRefused` for a URL that names none, and where the store's client library is not installed, and
    `StoreAway`.
    """
    address = parse(url)
    if address.scheme not in _MODULES:
        raise StoreRefused(f"A store's URL begins with one of {', '.join(f'{scheme}://' for scheme in _MODULES)}.")
    module, extra = _MODULES[address.scheme]
    try:
        connect = import_module(f"service.connectors.{module}").connect
    except ImportError as error:
        if extra is None or (error.name or "").startswith("service"):
            raise
        raise StoreRefused(
            f"{address.scheme}:// needs a library that is not installed: pip install 'gallery-upgrade[{extra}]'."
        ) from error
    store: ExternalStore = connect(address, new)
    return store


def tables(store: ExternalStore, rows: int) -> Iterator[pa.Table]:
    """Give the old side's rows as tables of about so many, with the columns `id` (string), `embedding` and, where
    the store has it, `side_information` (both lists of float32)."""
    for keys in keep_open_ends(store.bounds(rows)):
        found = store.read(keys)
        if found.keys:
            yield _table(found)


def _table(rows: Rows) -> pa.Table:
    columns = {"id": pa.array(rows.keys, pa.string()), "embedding": _lists(rows.embedding)}
    if rows.side_information is not None:
        columns["side_information"] = _lists(rows.side_information)
    return pa.table(columns)


def _lists(vectors: Vectors) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
