"""A gallery in a LanceDB table.

    lancedb:///folder?table=items&key=id&embedding=vector[&side_information=psi]

The new side is another column (or two) of the same rows, `vector_new_NAME`. A switch renames it to `vector`, and what
was called so to `vector_before_NAME`, by one alteration, which is one version of the table: who opens the table, or
checks out its latest version, sees one space or the other; who holds an older version open goes on seeing that. What a
drop removes is on the disk until old versions are cleaned up.

LanceDB does not tell of writes: what is changed after its range was written is brought when the range is written again.
Keys are strings or integers. A scalar index on the key spares each range a scan of all keys.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lancedb
import lancedb.index
import numpy as np
import pyarrow as pa

from service.connectors.address import Address
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
    needed,
    refuse_not_finite,
    refuse_other_dims,
)
from service.errors import GalleryError
from service.vectors.arrow import read_vectors

_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METRICS = {"l2": "l2", "cosine": "cosine", "dot": "ip"}


def connect(address: Address, new: NewSide | None) -> "LanceStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return LanceStore(address.checked(["table", "key", "embedding"], ["side_information"]), new)


class LanceStore:
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, address: Address, new: NewSide | None) -> None:
        named = address.parameters
        self._new = new
        self._key, self._embedding = named["key"], named["embedding"]
        self._side = named.get("side_information")
        for name in filter(None, (self._key, self._embedding, self._side)):
            if not _COLUMN.fullmatch(name):
                raise StoreRefused(f"A column's name is letters, digits and _; got {name!r}.")
        if not address.file.is_dir():
            raise StoreRefused(f"There is no folder {address.file.name!r}.")
        with _answering():
            # Every call sees the table's latest version.
            database = lancedb.connect(str(address.file), read_consistency_interval=timedelta(0))
            self._table = database.open_table(named["table"])
        key = self._field(self._key)
        self._is_text = pa.types.is_string(key) or pa.types.is_large_string(key)
        if not (self._is_text or pa.types.is_integer(key)):
            raise StoreRefused(f"The key {self._key!r} is {key}; keys are strings or integers.")
        self._dims(self._old)

    def describe(self) -> Description:
        embedding, side = self._old
        dims = self._dims(self._old)
        with _answering():
            rows = self._table.count_rows(f"{embedding} IS NOT NULL")
            lacking = self._table.count_rows(f"{embedding} IS NOT NULL AND {side} IS NULL") if side else 0
        if lacking:
            raise StoreRefused(f"{lacking} rows have an embedding and no side information.")
        metrics = [_METRICS.get(str(stats.distance_type).lower()) for _, stats in self._indexes(embedding)]
        return Description(
            rows=rows,
            embedding_dim=dims[0],
            side_information_dim=dims[1] if side else None,
            metric=metrics[0] if metrics else None,
            dtype="float16" if self._field(embedding).value_type == pa.float16() else "float32",
        )

    def bounds(self, rows: int) -> list[str]:
        found = self._select([self._key], [f"{self._old[0]} IS NOT NULL"])
        return [str(key) for key in sorted(found[self._key].to_pylist())[rows - 1 :: rows]]

    def read(self, keys: KeyRange) -> Rows:
        return self._read(self._old, keys)

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        """Return the columns that are no lists of fixed length: these are vectors."""
        with _answering():
            schema = self._table.schema
        names = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
        rows = self._select(names, [*self._within(keys), f"{self._old[0]} IS NOT NULL"]).to_pylist()
        return {str(row.pop(self._key)): row for row in rows}

    def prepare(self) -> None:
        new = needed(self._new)
        if self._new_columns is not None:
            found = self._dims(self._new_columns)
            if found != self._wanted():
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        embedding, side = self._searched_names
        if new.side_information_dim is not None and self._side is None and side in self._names():
            raise StoreRefused("The new side has side information: name its column in the URL, side_information=….")
        number = self._field(self._embedding).value_type
        fields = [pa.field(self._fresh(embedding), pa.list_(number, new.embedding_dim))]
        if new.side_information_dim is not None:
            fields.append(pa.field(self._fresh(side), pa.list_(number, new.side_information_dim)))
        with _answering():
            self._table.add_columns(pa.schema(fields))

    def write(self, keys: KeyRange, rows: Rows) -> None:
        refuse_other_dims(rows, needed(self._new))
        columns = self._prepared()
        if self.is_switched():
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")
        there = self._select([self._key], [*self._within(keys), f"{columns[0]} IS NOT NULL"])
        written = set(rows.keys)
        gone = [key for key in map(str, there[self._key].to_pylist()) if key not in written]
        parts: list[tuple[list[str], Vectors | None, Vectors | None]] = []
        if rows.keys:
            parts.append((rows.keys, rows.embedding, rows.side_information))
        if gone:
            parts.append((gone, None, None))
        for keys_of, embedding, side in parts:
            made = {self._key: pa.array(self._own(keys_of), self._field(self._key))}
            for name, vectors in zip(filter(None, columns), (embedding, side), strict=False):
                made[name] = _lists(vectors, self._field(name), len(keys_of))
            with _answering():
                # Rows that are gone are not inserted.
                self._table.merge_insert(self._key).when_matched_update_all().execute(pa.table(made))

    def read_new(self, keys: KeyRange) -> Rows:
        return self._read(self._prepared(), keys)

    def changed_keys(self, limit: int) -> list[str]:  # noqa: ARG002 - the protocol's
        return []

    def settle(self, transform: Transform, limit: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def index(self) -> None:
        """Give the new column an index of the kind and metric that the old one has."""
        new, _ = self._prepared()
        if self._indexes(new):
            return
        for found, stats in self._indexes(self._old[0]):
            with _answering():
                kind = getattr(lancedb.index, found.index_type.replace("IvfHnsw", "Hnsw"), None)
                if kind is not None:
                    self._table.create_index(new, config=kind(distance_type=str(stats.distance_type).lower()))

    def switch(self, transform: Transform) -> None:  # noqa: ARG002 - the protocol's
        if self.is_switched():
            return
        new, old = self._prepared(), self._old
        with _answering():
            lacking = self._table.count_rows(f"{old[0]} IS NOT NULL AND {new[0]} IS NULL")
        if lacking:
            raise StoreRefused(f"{lacking} rows have no embedding on the new side: write them before the switch.")
        renamed = [(name, self._kept(name)) for name in filter(None, old)]
        renamed += zip(filter(None, new), self._searched_names, strict=False)
        self._rename(renamed)

    def switch_back(self, *, forget_written: bool = False) -> None:  # noqa: ARG002 - the protocol's
        if not self.is_switched():
            return
        new, old = self._prepared(), self._old
        renamed = [(name, self._fresh(name)) for name in filter(None, new)]
        renamed += zip(filter(None, old), self._searched_names, strict=False)
        self._rename(renamed)

    def is_switched(self) -> bool:
        return self._kept(self._embedding) in self._names()

    def drop_new(self) -> None:
        if self.is_switched():
            raise StoreRefused("Searches see the new side: switch back before it is dropped.")
        self._drop(self._new_columns)

    def drop_old(self) -> None:
        if self.is_switched():
            self._drop(self._old)
        elif self._new_columns is not None:
            raise StoreRefused("Searches see the old side: switch before it is dropped.")

    def searched(self, query: Vectors, k: int) -> list[str]:
        dim = self._field(self._embedding).list_size
        if len(query) != dim:
            raise StoreRefused(f"The query has {len(query)} numbers; the table's vectors have {dim}.")
        with _answering():
            found = (
                self._table.search(query, vector_column_name=self._embedding).select([self._key]).limit(k).to_arrow()
            )
        return [str(key) for key in found[self._key].to_pylist()]

    def close(self) -> None:
        """Do nothing: no file is held open."""

    # Columns: of each side, the embedding's and the side information's, None where there is none.

    @property
    def _searched_names(self) -> tuple[str, str]:
        return self._embedding, self._side or "side_information"

    def _fresh(self, name: str) -> str:
        return f"{name}_new_{needed(self._new).name}"

    def _kept(self, name: str) -> str:
        return f"{name}_before_{needed(self._new).name}"

    @property
    def _old(self) -> tuple[str, str | None]:
        if self._new is None or not self.is_switched():
            return self._embedding, self._side
        return self._kept(self._embedding), None if self._side is None else self._kept(self._side)

    @property
    def _new_columns(self) -> tuple[str, str | None] | None:
        """The new side's columns; None before `prepare`."""
        embedding, side = self._searched_names
        if not self.is_switched():
            embedding, side = self._fresh(embedding), self._fresh(side)
            if embedding not in self._names():
                return None
        return embedding, side if needed(self._new).side_information_dim is not None else None

    def _prepared(self) -> tuple[str, str | None]:
        columns = self._new_columns
        if columns is None:
            raise StoreRefused("There is no new side: prepare it first.")
        return columns

    def _wanted(self) -> list[int]:
        new = needed(self._new)
        return [dim for dim in (new.embedding_dim, new.side_information_dim) if dim is not None]

    def _names(self) -> list[str]:
        with _answering():
            return list(self._table.schema.names)

    def _field(self, name: str) -> Any:
        """Return a column's type."""
        with _answering():
            schema = self._table.schema
        if name not in schema.names:
            raise StoreRefused(f"The table has no column {name!r}; it has {', '.join(schema.names)}.")
        return schema.field(name).type

    def _dims(self, columns: tuple[str, str | None]) -> list[int]:
        kinds = [(name, self._field(name)) for name in columns if name is not None]
        for name, kind in kinds:
            if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
                raise StoreRefused(f"The column {name!r} is {kind}; vectors are fixed-size lists of floats.")
        return [int(kind.list_size) for _, kind in kinds]

    def _rename(self, names: Sequence[tuple[str, str]]) -> None:
        """Rename columns in one version of the table."""
        changes: Any = [{"path": name, "rename": to} for name, to in names]
        with _answering():
            self._table.alter_columns(*changes)

    def _drop(self, columns: tuple[str, str | None] | None) -> None:
        if columns is not None:
            with _answering():
                self._table.drop_columns([name for name in columns if name is not None])

    def _indexes(self, column: str) -> list[tuple[Any, Any]]:
        """Return a column's indexes and what is known of each."""
        with _answering():
            found = [index for index in self._table.list_indices() if list(index.columns) == [column]]
            return [(index, self._table.index_stats(index.name)) for index in found]

    # Rows.

    def _own(self, keys: list[str]) -> list[Any]:
        return list(keys) if self._is_text else [int(key) for key in keys]

    def _within(self, keys: KeyRange) -> list[str]:
        ends = ((">", keys.after), ("<=", keys.upto))
        return [f"{self._key} {operator} {self._literal(end)}" for operator, end in ends if end is not None]

    def _literal(self, key: str) -> str:
        if not self._is_text:
            return str(int(key))
        escaped = key.replace("'", "''")
        return f"'{escaped}'"

    def _select(self, columns: list[str], conditions: list[str]) -> pa.Table:
        with _answering():
            return self._table.search().where(" AND ".join(conditions)).select(columns).to_arrow()

    def _read(self, columns: tuple[str, str | None], keys: KeyRange) -> Rows:
        names = [name for name in columns if name is not None]
        dims = self._dims(columns)
        table = self._select([self._key, *names], [*self._within(keys), f"{names[0]} IS NOT NULL"])
        table = table.sort_by(self._key)
        vectors = [_vectors(table, name, dim) for name, dim in zip(names, dims, strict=True)]
        found = [str(key) for key in table[self._key].to_pylist()]
        return refuse_not_finite(Rows(found, vectors[0], vectors[1] if len(vectors) > 1 else None))


def _lists(vectors: Vectors | None, kind: Any, rows: int) -> pa.Array:
    if vectors is None:
        return pa.nulls(rows, kind)
    flat = pa.array(vectors.reshape(-1).astype(kind.value_type.to_pandas_dtype()), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _vectors(table: pa.Table, name: str, dim: int) -> Vectors:
    if table.num_rows == 0:
        return np.empty((0, dim), np.float32)
    try:
        return read_vectors(table, name, dim)
    except GalleryError as error:
        raise StoreRefused(error.message) from error


@contextmanager
def _answering() -> Iterator[None]:
    """Raise what LanceDB raises as errors of stores."""
    try:
        yield
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise StoreRefused(f"LanceDB: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:  # also a commit that others' commits overtook
        raise StoreAway(f"LanceDB: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
