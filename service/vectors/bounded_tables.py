"""Tables read a few rows at a time: one that is more than allowed is refused before memory holds it, and of one that is
not, memory holds no more than some rows.

Kilobytes can stand for gigabytes: Parquet and Arrow compress, and write values that repeat once. So what counts is what
rows take once they are read: what each part of the bytes says that it is (`service.vectors.declared_sizes`) is added up
before any is decompressed, and what rows really take while they are read. A batch of Arrow's formats may be the whole
table. Files on a disk are mapped, so that a batch is read as its rows are; one that is compressed is decoded whole.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import TooLarge
from service.vectors.declared_sizes import Part, arrow_parts, held_at_once, parquet_parts

ROWS_AT_ONCE = 1_024
_MAGIC = b"ARROW1"
_FILE_BEGIN = _MAGIC + bytes(2)
_FILE_END_BYTES = 4 + len(_MAGIC)  # the footer's length, and the magic
_PARQUET_BUFFER_BYTES = 2**20  # without a buffer, pyarrow reads a column's whole row group at once


class TableTooLarge(TooLarge):
    """The table has more rows, or more bytes once they are read, than one request may bring."""


@dataclass(frozen=True)
class TableLimits:
    """The most rows of one table, and the most bytes that they take once they are read; `hold` is asked for the memory
    that decompressing it takes, and may refuse."""

    rows: int = 1_000_000
    bytes: int = 2**30
    hold: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()


@dataclass(frozen=True)
class OpenTable:
    """A table that is being read: its batches come once. Iterating over them raises `TableTooLarge` (413)."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@contextmanager
def open_parquet(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open a table. Raises `TableTooLarge` (413) before a row is read, where the file or its pages say that they are
    too many or too large."""
    source = _Source(body)
    with pq.ParquetFile(source.reader(), pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES) as file:
        _check_rows(file.metadata.num_rows, limits)
        held = _check_declared(parquet_parts(source.buffer, file.metadata), limits)
        source.forget_read()
        with limits.hold(held):
            yield OpenTable(file.schema_arrow, _counted(file.iter_batches(ROWS_AT_ONCE), limits, source))


@contextmanager
def open_stream(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open the table of an Arrow IPC stream. Raises `TableTooLarge` (413) before a row is read, where its messages say
    that they are too large."""
    with _open_messages(_Source(body), 0, None, limits) as table:
        yield table


@contextmanager
def open_file(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open the table of an Arrow IPC file (Feather version 2): a stream between its magic and its footer. Raises as
    `open_stream` does."""
    source = _Source(body)
    size = source.buffer.size
    if size < len(_FILE_BEGIN) + _FILE_END_BYTES or source.buffer[size - len(_MAGIC) :].to_pybytes() != _MAGIC:
        raise ValueError("the file is cut off")
    footer = int.from_bytes(source.buffer[size - _FILE_END_BYTES : size - len(_MAGIC)].to_pybytes(), "little")
    end = size - _FILE_END_BYTES - footer
    if end < len(_FILE_BEGIN):
        raise ValueError("the footer is longer than the file")
    with _open_messages(source, len(_FILE_BEGIN), end, limits) as table:
        yield table


@contextmanager
def _open_messages(source: "_Source", start: int, end: int | None, limits: TableLimits) -> Iterator[OpenTable]:
    stream = source.buffer[start:end]
    held = _check_declared(arrow_parts(stream), limits)
    source.forget_read()
    with limits.hold(held), pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
        yield OpenTable(reader.schema, _counted(reader, limits, source))


class _Source:
    """The bytes that a table is read from, which are mapped where they are a file on a disk."""

    def __init__(self, body: BinaryIO) -> None:
        self._mapped: mmap.mmap | None = None
        try:
            body.flush()
            self._mapped = mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # it is in memory, or has no bytes
            body.seek(0)
            self.buffer = pa.py_buffer(body.read())
        else:
            self.buffer = pa.py_buffer(self._mapped)

    def reader(self) -> pa.NativeFile:
        return pa.BufferReader(self.buffer)

    def forget_read(self) -> None:
        """Give back the memory of what was read; what is read again comes from the disk's cache."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _check_declared(parts: Iterable[Part], limits: TableLimits) -> int:
    """Return how many decompressed bytes reading holds at a time. Raises `TableTooLarge`."""
    read: list[Part] = []
    total = 0
    for part in parts:
        total += part.size
        _check_bytes(total, limits)
        read.append(part)
    return held_at_once(read)


def _counted(batches: Iterable[pa.RecordBatch], limits: TableLimits, source: _Source) -> Iterator[pa.RecordBatch]:
    rows, size = 0, 0
    dictionaries: dict[int, pa.Array] = {}  # of the batch before, by column
    for batch in batches:
        rows += batch.num_rows
        size += sum(_bytes(column) for column in batch.columns)
        for place, column in enumerate(batch.columns):
            if pa.types.is_dictionary(column.type):
                if not _is_same(column.dictionary, dictionaries.get(place)):
                    size += _bytes(column.dictionary)
                dictionaries[place] = column.dictionary
        _check_rows(rows, limits)
        _check_bytes(size, limits)
        yield batch
        source.forget_read()


def _bytes(column: pa.Array) -> int:
    """Return the size of a column's buffers. Offsets inside of them are the sender's, and not believed."""
    return sum(buffer.size for buffer in column.buffers() if buffer is not None)


def _is_same(dictionary: pa.Array, other: pa.Array | None) -> bool:
    """Whether two dictionaries lie in the same memory: batches of a stream share them."""
    if other is None:
        return False
    found, known = ([buffer and buffer.address for buffer in array.buffers()] for array in (dictionary, other))
    return found == known


def _check_rows(rows: int, limits: TableLimits) -> None:
    if rows > limits.rows:
        raise TableTooLarge(f"The table has more than {limits.rows:,} rows: post it in parts (GALLERY_MAX_TABLE_ROWS).")


def _check_bytes(size: int, limits: TableLimits) -> None:
    if size > limits.bytes:
        raise TableTooLarge(
            f"The table takes more than {limits.bytes:,} bytes once it is read: post it in parts"
            " (GALLERY_MAX_TABLE_BYTES)."
        )
