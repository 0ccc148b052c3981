"""Files of vectors as tables that are read in batches: Parquet, Arrow (stream and file), .npy, and flat FAISS indexes.

What a file is, its first bytes say. Of .npy and FAISS the only columns are the embedding, and the side-information
where a second .npy has it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from edge.errors import EdgeError

Kind = Literal["parquet", "arrow file", "arrow stream", "npy", "faiss"]
TABLES: tuple[Kind, ...] = ("parquet", "arrow file", "arrow stream")

METADATA_KEY = b"gallery_upgrade"  # in a schema's metadata: JSON, which rows these are
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Source(Protocol):
    """A file of vectors; `rows` and `schema` are all of it."""

    kind: Kind
    rows: int
    schema: pa.Schema

    def batches(self, columns: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        """Give some of the columns, at least one, from row `start` on, in batches of at most `size` rows."""
        ...


def open_source(path: Path, side_information: Path | None = None) -> Source:
    """Return what a file holds. Raises `EdgeError` for what is not a whole file of a known kind."""
    with path.open("rb") as stream:
        magic = stream.read(6)
    if side_information is not None and not magic.startswith((b"\x93NUMPY", b"Ix")):
        raise EdgeError(f"--side-information goes with .npy and FAISS; {path} has columns of its own.")
    try:
        if magic.startswith(b"PAR1"):
            return _Parquet(path)
        if magic.startswith(b"ARROW1"):
            return _ArrowFile(path)
        if magic.startswith(b"\xff\xff\xff\xff"):
            return _ArrowStream(path)
        if magic.startswith(b"\x93NUMPY"):
            return _Arrays(_load_npy(path), side_information)
        if magic.startswith(b"Ix"):
            return FlatIndex(path, side_information)
    except (pa.ArrowException, ValueError, RuntimeError) as error:
        raise EdgeError(f"{path} cannot be read: {error}") from error
    raise EdgeError(f"{path} is none of Parquet, an Arrow stream or file, .npy, or a flat FAISS index.")


def vectors_of(column: pa.Array, name: str, first_row: int) -> NDArray[Any]:
    """Return (N, D) floats of a column of lists, in the column's own number format.

    Raises `EdgeError` unless all rows are lists of as many floats, none of them null.
    """
    kind = column.type
    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise EdgeError(f"The column {name!r} has lists of floats; got {kind}.")
    if column.null_count:
        row = first_row + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise EdgeError(f"Row {row} has no {name!r}.")
    flat = column.flatten()
    lengths = np.full(len(column), kind.list_size) if is_fixed else np.diff(column.offsets.to_numpy())
    if flat.null_count or (lengths != lengths[0]).any():
        raise EdgeError(f"The rows of {name!r} from {first_row} on have different lengths, or nulls inside.")
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), int(lengths[0]))


def list_column(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """Return (N, D) floats as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def said_of(schema: pa.Schema) -> dict[str, Any]:
    """Return what a table says of its rows: the service's export names `gallery` and `model_version`."""
    with suppress(ValueError):
        said = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        if isinstance(said, dict):
            return said
    return {}


class _Parquet:
    kind: Kind = "parquet"

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        self.rows = self._file.metadata.num_rows
        self.schema = self._file.schema_arrow

    def batches(self, columns: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        sizes = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        first, before = 0, 0
        while first < len(sizes) and before + sizes[first] <= start:
            before += sizes[first]
            first += 1
        groups = list(range(first, len(sizes)))
        found = self._file.iter_batches(size, row_groups=groups, columns=list(columns), use_threads=False)
        yield from _from_row(found, start - before, size)


class _ArrowFile:
    kind: Kind = "arrow file"

    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            self.schema = reader.schema
        self.rows = sum(len(batch) for batch in self._read([0] if len(self.schema) else []))

    def batches(self, columns: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        yield from _from_row(self._read([self.schema.get_field_index(name) for name in columns]), start, size)

    def _read(self, fields: list[int]) -> Iterator[pa.RecordBatch]:
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with pa.ipc.open_file(pa.memory_map(str(self._path)), options=options) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class _ArrowStream:
    kind: Kind = "arrow stream"

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as stream:
            stream.seek(-min(len(_END_OF_STREAM), path.stat().st_size), 2)
            if stream.read() != _END_OF_STREAM:
                raise EdgeError(f"{path} is cut off: an Arrow stream has an end, which is missing. Fetch it again.")
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            self.schema = reader.schema
        self.rows = sum(len(batch) for batch in self._read([0] if len(self.schema) else []))

    def batches(self, columns: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        yield from _from_row(self._read([self.schema.get_field_index(name) for name in columns]), start, size)

    def _read(self, fields: list[int]) -> Iterator[pa.RecordBatch]:
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with pa.ipc.open_stream(pa.memory_map(str(self._path)), options=options) as reader:
            yield from reader


class _Arrays:
    """(N, D) embeddings, and (N, S) side-information where there is some."""

    kind: Kind = "npy"

    def __init__(self, embedding: NDArray[Any], side_information: Path | None) -> None:
        self._columns = {"embedding": embedding}
        if side_information is not None:
            self._columns["side_information"] = _load_npy(side_information)
        self.rows = len(embedding)
        if any(len(values) != self.rows for values in self._columns.values()):
            raise EdgeError(f"{side_information} has another number of rows than there are embeddings.")
        fields = {name: pa.list_(pa.from_numpy_dtype(v.dtype), v.shape[1]) for name, v in self._columns.items()}
        self.schema = pa.schema(fields)

    def batches(self, columns: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        for at in range(start, self.rows, size):
            yield pa.record_batch([list_column(self._columns[name][at : at + size]) for name in columns], list(columns))


class FlatIndex(_Arrays):
    """The vectors of a flat FAISS index, which is held in memory; `ids` are its numbers for them, None where it has
    none of its own."""

    kind: Kind = "faiss"

    def __init__(self, path: Path, side_information: Path | None) -> None:
        try:
            import faiss
        except ImportError as error:
            raise EdgeError("FAISS files need faiss: pip install faiss-cpu.") from error
        owner = faiss.read_index(str(path))  # the others below are views of it, and die with it
        read = faiss.downcast_index(owner)
        is_numbered = isinstance(read, faiss.IndexIDMap)
        self.ids: NDArray[np.int64] | None = faiss.vector_to_array(read.id_map) if is_numbered else None
        flat = faiss.downcast_index(read.index) if is_numbered else read
        if not isinstance(flat, faiss.IndexFlat):
            raise EdgeError(f"{path} is a {type(flat).__name__}: only a flat index holds its vectors as they were.")
        self.metric: int = flat.metric_type
        super().__init__(flat.reconstruct_n(0, flat.ntotal), side_information)


def in_equal_batches(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Give the same rows in batches of exactly `size`, but for the last: sums round alike, wherever a file is cut."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) >= size:
            whole = pa.concat_batches(pending)
            yield whole.slice(0, size)
            pending = [whole.slice(size)] if len(whole) > size else []
    if pending:
        yield pa.concat_batches(pending)


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise EdgeError(f"{path} is not a .npy file of numbers: {error}") from error
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32, np.float64) or not values.dtype.isnative:
        raise EdgeError(f"{path} has (N, D) floats of this machine's byte order; got {values.dtype} {values.shape}.")
    return values


def _from_row(batches: Iterator[pa.RecordBatch], start: int, size: int) -> Iterator[pa.RecordBatch]:
    """Skip the first `start` rows, and cut what follows into batches of at most `size`."""
    for batch in batches:
        for at in range(min(start, len(batch)), len(batch), size):
            yield batch.slice(at, min(size, len(batch) - at))
        start = max(0, start - len(batch))
