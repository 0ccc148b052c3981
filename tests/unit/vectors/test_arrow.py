"""Tables that a user sends: which bytes are read, and which columns are vectors."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.vectors.arrow import InvalidImport, UnknownFormat, read_table, read_vectors

VECTORS = [[1.5, -2.0], [0.25, 65504.0], [0.0, 3.0]]  # numbers of float16, which every kind of column holds exactly
KINDS = [pa.float16(), pa.float32(), pa.float64()]


def stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2)
    return sink.getvalue()


@pytest.mark.parametrize("written", [stream, parquet])
def test_a_table_is_read_from_an_arrow_stream_and_from_parquet(written: Callable[[pa.Table], bytes]) -> None:
    table = pa.table({"id": ["a", "b", "c"], "embedding": pa.array(VECTORS, pa.list_(pa.float32()))})

    found = read_table(io.BytesIO(written(table)))

    assert found.to_pydict() == table.to_pydict()


@pytest.mark.parametrize("body", [b"", b"ARR", b"PAR1", b"PAR1 and no more", b"{}", bytes(100)])
def test_bytes_that_are_neither_are_of_an_unknown_format(body: bytes) -> None:
    with pytest.raises(UnknownFormat) as refused:
        read_table(io.BytesIO(body))

    assert refused.value.status_code == 415


def test_offsets_beyond_the_data_are_refused_and_not_followed() -> None:
    whole = stream(pa.table({"embedding": pa.array(VECTORS[:2], pa.list_(pa.float32()))}))
    before, after = (np.array(offsets, np.int32).tobytes() for offsets in ([0, 2, 4], [0, 2, 2**30]))
    assert whole.count(before) == 1

    with pytest.raises(InvalidImport, match="damaged"):
        read_table(io.BytesIO(whole.replace(before, after)))


@pytest.mark.parametrize("number", KINDS)
@pytest.mark.parametrize("form", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_every_form_of_a_list_of_floats_is_read_exactly(form: Callable[[Any], Any], number: Any) -> None:
    column = pa.array(VECTORS, form(number))

    vectors = read_vectors(pa.table({"embedding": pa.chunked_array([column[:2], column[2:]])}), "embedding")

    assert vectors.dtype == np.float32
    assert vectors.tolist() == VECTORS


def test_a_slice_of_a_table_has_the_vectors_of_its_own_rows() -> None:
    table = pa.table({"embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))})

    assert read_vectors(table.slice(1, 1), "embedding").tolist() == VECTORS[1:2]


def test_numbers_that_are_not_finite_pass_and_those_beyond_float32_become_infinite() -> None:
    table = pa.table({"embedding": [[float("nan"), float("-inf")], [1e300, -1e300]]})

    vectors = read_vectors(table, "embedding")

    np.testing.assert_array_equal(vectors, np.array([[np.nan, -np.inf], [np.inf, -np.inf]], np.float32))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([1.0, 2.0]), "has lists of numbers; got double"),
        (pa.array([[1], [2]]), "has lists of floats; got list"),
        (pa.array([[1.0], [1.0, 2.0]]), "different lengths or nulls"),
        (pa.array([[1.0], None]), "different lengths or nulls"),
        (pa.array([[1.0], [None]]), "has nulls inside its vectors"),
    ],
)
def test_a_column_that_is_no_vectors_of_one_length_is_refused(column: Any, reason: str) -> None:
    with pytest.raises(InvalidImport, match=f"'embedding' .*{reason}"):
        read_vectors(pa.table({"embedding": column}), "embedding")
