"""Tables read a few rows at a time: one that is more than allowed is refused before memory holds it, and of one that is
not, memory holds no more than some rows.

Kilobytes can stand for gigabytes: Parquet and Arrow compress, and write values that repeat once. So what counts is what
rows take once they are read. A batch of Arrow's formats may be the whole table. Files on a disk are mapped, so that a
batch is read as its rows are; one that is compressed is decoded whole.
"""

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import TooLarge

ROWS_AT_ONCE = 1_024
_PARQUET_BUFFER_BYTES = 2**20  # without a buffer, pyarrow reads a column's whole row group at once


class TableTooLarge(TooLarge):
    """The table has more rows, or more bytes once they are read, than one request may bring."""


@dataclass(frozen=True)
class TableLimits:
    """The most rows of one table, and the most bytes that they take once they are read."""

    rows: int = 1_000_000
    bytes: int = 2**30


@dataclass(frozen=True)
class OpenTable:
    """A table that is being read: its batches come once. Iterating over them raises `TableTooLarge` (413)."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@contextmanager
def open_parquet(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open a table. Raises `TableTooLarge` (413), where the file says its size before a row is read."""
    source = _Source(body)
    with pq.ParquetFile(source.file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES) as file:
        _check_rows(file.metadata.num_rows, limits)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        _check_bytes(sum(group.total_byte_size for group in groups), limits)
        yield OpenTable(file.schema_arrow, _counted(file.iter_batches(ROWS_AT_ONCE), limits, source))


@contextmanager
def open_stream(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open the table of an Arrow IPC stream."""
    source = _Source(body)
    with pa.ipc.open_stream(source.file) as reader:
        yield OpenTable(reader.schema, _counted(reader, limits, source))


@contextmanager
def open_file(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open the table of an Arrow IPC file (Feather version 2)."""
    source = _Source(body)
    with pa.ipc.open_file(source.file) as reader:
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        yield OpenTable(reader.schema, _counted(batches, limits, source))


class _Source:
    """What a table is read from: `file`, which is mapped where it is one on a disk."""

    def __init__(self, body: BinaryIO) -> None:
        self.file: Any = body
        self._mapped: mmap.mmap | None = None
        try:
            body.flush()
            self._mapped = mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # it is in memory, or has no bytes
            return
        self.file = pa.BufferReader(pa.py_buffer(self._mapped))

    def forget_read(self) -> None:
        """Give back the memory of what was read; what is read again comes from the disk's cache."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


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
