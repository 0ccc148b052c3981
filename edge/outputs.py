"""Files of upgraded vectors, written in the format that their suffix names."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from edge.errors import EdgeError
from edge.sources import METADATA_KEY, TABLES, FlatIndex, Kind, Source, list_column, said_of

TRANSFORMED = "transformed"
SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet",
    ".arrow": "arrow file",
    ".feather": "arrow file",
    ".arrows": "arrow stream",
    ".npy": "npy",
    ".faiss": "faiss",
}
_BLOCK_BYTES = 32 * 2**20
_MOST_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Columns:
    """The names of the columns of vectors in a table."""

    embedding: str = "embedding"
    side_information: str = "side_information"

    @property
    def derived(self) -> tuple[str, ...]:
        """The columns that an upgrade writes, or leaves out."""
        return (self.embedding, self.side_information, "origin", "hops", "uncertainty")


@dataclass(frozen=True)
class Derived:
    """What h and g gave, by row: (N, D_to) and (N, S_to) in the numbers that are written, uncertainty (N,) float32 with
    NaN where h does not say; memory-mapped. `said` is what the file says of its rows."""

    embedding: NDArray[Any]
    side_information: NDArray[Any] | None
    uncertainty: NDArray[np.float32] | None
    said: dict[str, Any]


def kind_of_output(path: Path, source: Source) -> Kind:
    """Return what is to be written, by the suffix. Raises `EdgeError` where the source cannot become that."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise EdgeError(f"The output's suffix says what it is, one of {', '.join(SUFFIXES)}; got {path.name}.")
    if kind != source.kind and not (kind in TABLES and source.kind in TABLES):
        raise EdgeError(f"A file of kind {source.kind} cannot become one of kind {kind}: tables become tables alone.")
    return kind


def write_output(path: Path, kind: Kind, source: Source, columns: Columns, derived: Derived) -> None:
    """Write the source's other columns and what was derived, in the source's order."""
    if kind == "npy":
        _write_npy(path, derived.embedding)
    elif kind == "faiss":
        assert isinstance(source, FlatIndex)
        _write_index(path, source, derived.embedding)
    else:
        _write_table(path, kind, _Table(source, columns, derived))


def kept_columns(source: Source, columns: Columns) -> list[str]:
    """Return the source's columns that an upgrade leaves as they are, in their order."""
    return [name for name in source.schema.names if name not in columns.derived]


class _Table:
    """The output as batches of one schema."""

    def __init__(self, source: Source, columns: Columns, derived: Derived) -> None:
        self._source, self._derived, self._columns = source, derived, columns
        side, expected = derived.side_information, derived.uncertainty
        self._types: dict[str, pa.DataType | None] = {
            columns.embedding: _list_type(derived.embedding),
            columns.side_information: None if side is None else _list_type(side),
            "origin": pa.string(),
            "hops": self._hops_type(),
            "uncertainty": pa.float32() if expected is not None or "uncertainty" in source.schema.names else None,
        }
        self.schema = self._schema()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give all rows."""
        names = [*kept_columns(self._source, self._columns), *(["hops"] if "hops" in self._source.schema.names else [])]
        names = names or [self._columns.embedding]  # a batch without columns has no rows
        row_bytes = self._derived.embedding[:1].nbytes + 1
        size = max(1, min(_MOST_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
        at = 0
        for batch in self._source.batches(names, 0, size):
            yield self._batch(batch, slice(at, at + len(batch)))
            at += len(batch)

    def _batch(self, batch: pa.RecordBatch, rows: slice) -> pa.RecordBatch:
        derived, count = self._derived, len(batch)
        made: dict[str, Any] = {self._columns.embedding: list_column(derived.embedding[rows])}
        if derived.side_information is not None:
            made[self._columns.side_information] = list_column(derived.side_information[rows])
        made["origin"] = pa.repeat(TRANSFORMED, count)
        made["hops"] = self._hops(batch)
        expected = np.full(count, np.nan, np.float32) if derived.uncertainty is None else derived.uncertainty[rows]
        made["uncertainty"] = pa.array(expected, mask=np.isnan(expected))
        columns = [made[name] if name in made else batch.column(name) for name in self.schema.names]
        return pa.record_batch(columns, schema=self.schema)

    def _hops(self, batch: pa.RecordBatch) -> pa.Array:
        kind = self._types["hops"]
        before = batch.column("hops") if "hops" in batch.schema.names else pa.nulls(len(batch), kind)
        try:
            return pc.add_checked(pc.fill_null(before, pa.scalar(0, kind)), pa.scalar(1, kind))
        except pa.ArrowInvalid as error:
            raise EdgeError(f"The column 'hops' is {kind}, which cannot hold one hop more.") from error

    def _schema(self) -> pa.Schema:
        fields = []
        for field in self._source.schema:
            kind = self._types.get(field.name, field.type)
            if kind is not None:
                fields.append(field if kind == field.type else pa.field(field.name, kind))
        here = {field.name for field in fields}
        fields += [pa.field(name, kind) for name, kind in self._types.items() if kind is not None and name not in here]
        said = {"gallery": said_of(self._source.schema).get("gallery"), **self._derived.said}
        about = {METADATA_KEY: json.dumps({name: value for name, value in said.items() if value is not None}).encode()}
        return pa.schema(fields, {**(self._source.schema.metadata or {}), **about})

    def _hops_type(self) -> pa.DataType:
        if "hops" not in self._source.schema.names:
            return pa.int16()
        found = self._source.schema.field("hops").type
        if not pa.types.is_integer(found):
            raise EdgeError(f"The column 'hops' has whole numbers; got {found}.")
        return found


def _list_type(values: NDArray[Any]) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1])


def _write_table(path: Path, kind: Kind, table: _Table) -> None:
    writers: dict[Kind, Callable[[], Any]] = {
        "parquet": lambda: pq.ParquetWriter(path, table.schema, use_dictionary=_repeated(table.schema)),
        "arrow file": lambda: pa.ipc.new_file(str(path), table.schema),
        "arrow stream": lambda: pa.ipc.new_stream(str(path), table.schema),
    }
    with writers[kind]() as writer:
        for batch in table.batches():
            writer.write_batch(batch)


def _repeated(schema: pa.Schema) -> Sequence[str]:
    """Return the columns whose values may be worth a dictionary: no vector is like another."""
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def _write_npy(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for at in range(0, len(values), _MOST_BLOCK_ROWS):
            stream.write(np.ascontiguousarray(values[at : at + _MOST_BLOCK_ROWS]).data)


def _write_index(path: Path, source: FlatIndex, values: NDArray[Any]) -> None:
    import faiss

    flat = faiss.IndexFlat(values.shape[1], source.metric)
    index = flat if source.ids is None else faiss.IndexIDMap2(flat)
    for at in range(0, len(values), _MOST_BLOCK_ROWS):
        block = np.ascontiguousarray(values[at : at + _MOST_BLOCK_ROWS], np.float32)
        if source.ids is None:
            index.add(block)
        else:
            index.add_with_ids(block, source.ids[at : at + len(block)])
    faiss.write_index(index, str(path))
