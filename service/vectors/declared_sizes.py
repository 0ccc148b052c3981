"""How many bytes a table's parts say that they are once they are decompressed, read from their headers alone.

Both formats write before each compressed part how long it is; readers allocate that, decompress into it, and fail where
the part is longer. So the sum is what reading takes, whatever else the file says of itself.

Arrow (https://arrow.apache.org/docs/format/Columnar.html): a message's metadata is a flatbuffer with the place of each
buffer in the message's body; a compressed one begins with 8 bytes of its length. Parquet
(https://parquet.apache.org/docs/file-format/): each page has a header in Thrift's compact protocol. Offsets are the
sender's: whatever leads out of the bytes raises.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # of Arrow's MessageHeader
_NOT_COMPRESSED = -1
_DICTIONARY_PAGE = 2  # of Parquet's PageType


class NotDeclared(ValueError):
    """A part does not say how long it is, or its header leads out of the bytes."""


@dataclass(frozen=True)
class Part:
    """A message, or a page: how many bytes it is, and of these, how many are decompressed; `stays` where it is needed
    until the end of the table, or of its column, as dictionaries are."""

    size: int
    decompressed: int
    stays: bool
    column: int = 0


def held_at_once(parts: Sequence[Part]) -> int:
    """Return how many decompressed bytes a reader holds at a time: what stays, and of the others one of each column."""
    stays = sum(part.decompressed for part in parts if part.stays)
    largest: dict[int, int] = {}
    for part in parts:
        if not part.stays:
            largest[part.column] = max(largest.get(part.column, 0), part.decompressed)
    return stays + sum(largest.values())


def arrow_parts(stream: pa.Buffer) -> Iterator[Part]:
    """Give the messages of an Arrow IPC stream. Raises `NotDeclared`."""
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(stream))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        try:
            yield _message(message)
        except struct.error as error:
            raise NotDeclared(f"a message leads out of its bytes: {error}") from error


def parquet_parts(file: pa.Buffer, metadata: Any) -> Iterator[Part]:
    """Give the pages of a Parquet file, whose footer is `metadata`. Raises `NotDeclared`."""
    data = memoryview(file).cast("B")
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.num_values == 0:
                continue  # nothing of it is read
            first = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                first = min(first, column.dictionary_page_offset)
            yield from _pages(data, first, column.total_compressed_size, number)


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer, at its place."""

    data: memoryview
    place: int

    def field(self, number: int) -> int | None:
        """Return the place of a field, None where it is left out."""
        (back,) = struct.unpack_from("<i", self.data, _inside(self.place))
        vtable = _inside(self.place - back)
        (size,) = struct.unpack_from("<H", self.data, vtable)
        if 4 + 2 * number + 2 > size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, vtable + 4 + 2 * number)
        return self.place + offset if offset else None

    def table(self, number: int) -> "_Table | None":
        place = self.field(number)
        return None if place is None else _Table(self.data, self._at(place))

    def structs(self, number: int, layout: str) -> Iterator[tuple[Any, ...]]:
        """Give the structs of a vector."""
        place = self.field(number)
        if place is None:
            return
        vector = self._at(place)
        (count,) = struct.unpack_from("<I", self.data, vector)
        size = struct.calcsize(layout)
        if vector + 4 + count * size > len(self.data):
            raise NotDeclared("a message has fewer buffers than it says")
        yield from struct.iter_unpack(layout, self.data[vector + 4 : vector + 4 + count * size])

    def _at(self, place: int) -> int:
        (offset,) = struct.unpack_from("<I", self.data, place)
        return place + int(offset)


def _inside(place: int) -> int:
    """Return a place that is not before the bytes: from there, Python would count from their end."""
    if place < 0:
        raise NotDeclared("a message leads out of its bytes")
    return place


def _message(message: Any) -> Part:
    metadata = memoryview(message.metadata).cast("B")
    root = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    kind_at, header = root.field(1), root.table(2)
    if kind_at is None or header is None:
        raise NotDeclared("a message has no header")
    kind = metadata[_inside(kind_at)]
    batch = header.table(1) if kind == _DICTIONARY_BATCH else header
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None:
        return Part(0, 0, stays=False)  # the schema
    body = memoryview(b"" if message.body is None else message.body).cast("B")
    is_compressed = batch.field(3) is not None
    size, decompressed = 0, 0
    for offset, length in batch.structs(2, "<qq"):
        declared = _decompressed_size(body, offset, length) if is_compressed else None
        size += length if declared is None else declared
        decompressed += declared or 0
    return Part(size, decompressed, stays=kind == _DICTIONARY_BATCH)


def _decompressed_size(body: memoryview, offset: int, length: int) -> int | None:
    """Return what a buffer of a compressed message is decompressed to; None where it is not compressed."""
    if length < 8:
        return None
    (size,) = struct.unpack_from("<q", body, _inside(offset))
    if size == _NOT_COMPRESSED:
        return None
    if size < 0:
        raise NotDeclared("a buffer has a negative length")
    return int(size)


def _pages(data: memoryview, first: int, length: int, column: int) -> Iterator[Part]:
    place, end = first, first + length
    if first < 0 or length < 0 or end > len(data):
        raise NotDeclared("a column leads out of the file")
    while place < end:
        header = _Thrift(data[place:end])
        fields = header.struct()
        size, compressed = fields.get(2), fields.get(3)
        if not isinstance(size, int) or not isinstance(compressed, int) or size < 0 or compressed < 0:
            raise NotDeclared("a page does not say its size")
        yield Part(size, size, fields.get(1) == _DICTIONARY_PAGE, column)
        place += header.place + compressed


class _Thrift:
    """Reads structs of Thrift's compact protocol: fields by their numbers, integers alone with their values."""

    _DEEPEST = 16

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, int | None]:
        if depth > self._DEEPEST:
            raise NotDeclared("a page's header is nested too deeply")
        fields: dict[int, int | None] = {}
        number = 0
        while True:
            head = self._byte()
            if head == 0:
                return fields
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth)

    def _value(self, kind: int, depth: int) -> int | None:
        match kind:
            case 1 | 2:  # a boolean, which is its type
                return None
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                self.place += 8
            case 8:
                length = self._varint()
                self.place += length
            case 9 | 10:
                head = self._byte()
                count = self._varint() if head >> 4 == 15 else head >> 4
                if count > len(self._data):
                    raise NotDeclared("a page's header leads out of its bytes")
                for _ in range(count):
                    self._element(head & 15, depth)
            case 12:
                self.struct(depth + 1)
            case _:
                raise NotDeclared("a page's header is of no known type")
        return None

    def _element(self, kind: int, depth: int) -> None:
        if kind in (1, 2):
            self.place += 1
        else:
            self._value(kind, depth + 1)

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise NotDeclared("a page's header has a number that is too long")

    def _byte(self) -> int:
        if not 0 <= self.place < len(self._data):
            raise NotDeclared("a page's header leads out of its bytes")
        byte = self._data[self.place]
        self.place += 1
        return byte
