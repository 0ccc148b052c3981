"""What a table's bytes say of themselves, against what reading them takes; and bytes that lie."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.vectors.arrow import UnknownFormat, read_table
from service.vectors.bounded_tables import TableLimits, TableTooLarge
from service.vectors.declared_sizes import NotDeclared, arrow_parts, held_at_once, parquet_parts

ROWS = 5_000


def some_table() -> pa.Table:
    vectors = np.random.default_rng(0).standard_normal((ROWS, 8)).astype(np.float32)
    names = pa.array([f"label {number % 7}" for number in range(ROWS)])
    return pa.table(
        {
            "id": [f"item {number}" for number in range(ROWS)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8),
            "label": names.dictionary_encode(),
            "metadata": pa.array([None if number % 3 else {"a": [number]} for number in range(ROWS)]),
        }
    )


def arrow_bytes(table: pa.Table, compression: str | None, *, is_file: bool = False) -> bytes:
    sink, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1_000)
    return sink.getvalue()


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_an_arrow_stream_says_what_its_batches_take(compression: str | None) -> None:
    data = arrow_bytes(some_table(), compression)
    parts = list(arrow_parts(pa.py_buffer(data)))

    with pa.ipc.open_stream(arrow_bytes(some_table(), None)) as reader:
        batches = list(reader)
    read = sum(b.size for batch in batches for column in batch.columns for b in column.buffers() if b is not None)
    assert read <= sum(part.size for part in parts) <= 1.1 * read + 10_000  # with padding
    assert held_at_once(parts) == 0 if compression is None else 0 < held_at_once(parts) < read / 2


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_parquet_file_says_what_its_pages_take(compression: str, version: str) -> None:
    data = parquet_bytes(
        some_table(), compression=compression, data_page_version=version, row_group_size=2_000, data_page_size=4_096
    )
    metadata = pq.read_metadata(io.BytesIO(data))

    parts = list(parquet_parts(pa.py_buffer(data), metadata))

    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    in_footer = sum(group.total_byte_size for group in groups)  # with the pages' headers
    assert 0.7 * in_footer < sum(part.size for part in parts) <= in_footer
    assert any(part.stays for part in parts)


def test_a_file_of_arrow_is_read_as_the_stream_that_it_holds() -> None:
    table = some_table()

    assert read_table(io.BytesIO(arrow_bytes(table, "zstd", is_file=True))).equals(table)


def bomb(size: int, kind: str) -> bytes:
    """Return a table of one text of so many equal bytes."""
    text = pa.py_buffer(bytes(size))
    offsets = pa.py_buffer(np.array([0, size], np.int64))
    table = pa.table({"id": pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, text])})
    if kind == "parquet":
        return parquet_bytes(table, compression="zstd", use_dictionary=False)
    return arrow_bytes(table, "zstd", is_file=kind == "file")


@pytest.mark.parametrize("kind", ["stream", "file", "parquet"])
def test_kilobytes_that_stand_for_much_are_refused_before_any_of_it_is_decompressed(kind: str) -> None:
    data = bomb(2**26, kind)
    before = pa.default_memory_pool().max_memory()

    with pytest.raises(TableTooLarge, match="1,000,000 bytes once it is read"):
        read_table(io.BytesIO(data), TableLimits(bytes=1_000_000))

    assert len(data) < 100_000
    assert pa.default_memory_pool().max_memory() <= max(before, 2**26 + 2**25)  # the making of the bomb is in it


def test_what_is_decompressed_is_asked_for_first() -> None:
    asked: list[int] = []

    class Refused(Exception):
        pass

    def refuse(count: int) -> Any:
        asked.append(count)
        raise Refused

    for kind in ("stream", "parquet"):
        with pytest.raises(UnknownFormat) as refusal:
            read_table(io.BytesIO(bomb(100_000, kind)), TableLimits(hold=refuse))
        assert isinstance(refusal.value.__cause__, Refused)
    assert [100_000 <= count <= 100_200 for count in asked] == [True, True]


@pytest.mark.parametrize("kind", ["stream", "parquet"])
def test_bytes_that_are_broken_anywhere_are_refused_or_read_and_never_lead_out(kind: str) -> None:
    data = arrow_bytes(some_table(), "zstd") if kind == "stream" else parquet_bytes(some_table(), compression="zstd")
    metadata = pq.read_metadata(io.BytesIO(parquet_bytes(some_table(), compression="zstd")))
    chance = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(data)
        for place in chance.integers(0, len(data), 3):
            broken[place] = chance.integers(0, 256)
        buffer = pa.py_buffer(bytes(broken))
        try:
            parts = list(arrow_parts(buffer) if kind == "stream" else parquet_parts(buffer, metadata))
        except (NotDeclared, pa.ArrowException, OSError):
            continue
        assert all(part.size >= 0 for part in parts)
