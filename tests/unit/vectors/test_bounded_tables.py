"""Tables that are more than allowed are refused, however few bytes they were sent in."""

import io
import tempfile
from collections.abc import Callable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.vectors.arrow import open_table, read_table
from service.vectors.bounded_tables import ROWS_AT_ONCE, TableLimits, TableTooLarge


def parquet(table: pa.Table, **options: str) -> BinaryIO:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    sink.seek(0)
    return sink


def stream(table: pa.Table, compression: str | None = None) -> BinaryIO:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1_000)
    sink.seek(0)
    return sink


def equal_rows(count: int, dim: int = 64) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * (count * dim), pa.float32()), dim)
    return pa.table({"id": pa.array(["same"] * count), "embedding": vectors})


@pytest.mark.parametrize("write", [parquet, stream])
def test_a_table_within_the_limits_is_read_whole(write: Callable[[pa.Table], BinaryIO]) -> None:
    table = equal_rows(3_000)

    assert read_table(write(table), TableLimits(3_000, 10**6)).equals(table)
    assert read_table(write(table.slice(0, 0)), TableLimits(1, 1_000)).num_rows == 0


def test_a_dictionary_that_batches_share_counts_once() -> None:
    names = pa.array([f"{number:0100}" for number in range(1_000)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), names)

    found = read_table(stream(pa.table({"label": column})), TableLimits(bytes=300_000))

    assert found.num_rows == 20_000


def write_arrow(table: pa.Table, file: BinaryIO) -> None:
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)  # one batch


def write_feather(table: pa.Table, file: BinaryIO) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def write_parquet(table: pa.Table, file: BinaryIO) -> None:
    pq.write_table(table, file, row_group_size=len(table))


@pytest.mark.parametrize("write", [write_arrow, write_feather, write_parquet])
def test_memory_holds_some_rows_of_a_file_however_it_was_written(write: Callable[[pa.Table, BinaryIO], None]) -> None:
    table = equal_rows(20_000, 256)
    table_bytes, read_bytes = table.nbytes, []
    with tempfile.SpooledTemporaryFile(max_size=0) as file:
        write(table, file)  # type: ignore[arg-type]  # a spooled file is a BinaryIO in all but name
        file.seek(0)
        del table
        before = pa.total_allocated_bytes()

        rows = 0
        with open_table(file, TableLimits()) as opened:  # type: ignore[arg-type]
            for batch in opened.batches:
                rows += batch.num_rows
                read_bytes.append(pa.total_allocated_bytes() - before)
                assert batch.num_rows <= ROWS_AT_ONCE

    assert rows == 20_000
    assert max(read_bytes) < table_bytes / 5


def test_two_million_equal_ids_are_refused_before_they_are_read() -> None:
    body = parquet(pa.table({"id": pa.array(["same"]).take(pa.array([0] * 2_000_000))}))

    with pytest.raises(TableTooLarge, match=r"more than 1,000,000 rows: post it in parts"):
        read_table(body)


@pytest.mark.parametrize("body", [parquet(equal_rows(20_000)), stream(equal_rows(20_000), "zstd")])
def test_what_counts_is_what_rows_take_once_they_are_read(body: BinaryIO) -> None:
    sent = body.seek(0, io.SEEK_END)
    body.seek(0)

    with pytest.raises(TableTooLarge, match="1,000,000 bytes once it is read"):
        read_table(body, TableLimits(bytes=1_000_000))
    assert sent < 200_000
