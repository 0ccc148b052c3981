"""Tables that a user sends: which bytes are read, and which columns are vectors."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.feather import write_feather

from service.vectors.arrow import (
    BadRows,
    InvalidImport,
    RowFaults,
    UnknownFormat,
    check_columns,
    plain_values,
    read_string_lists,
    read_strings,
    read_table,
    read_vectors,
)

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


def file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def feather(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    write_feather(table, sink)
    return sink.getvalue()


def views(starts: list[int], lengths: list[int], values: list[float]) -> pa.Array:
    offsets, sizes = (pa.array(numbers, pa.int32()) for numbers in (starts, lengths))
    return pa.ListViewArray.from_arrays(offsets, sizes, pa.array(values, pa.float32()))


def as_views(values: list[str | None]) -> pa.Array:
    return pa.array(values).cast(pa.string_view())


@pytest.mark.parametrize("written", [stream, parquet, file, feather])
def test_a_table_is_read_from_every_format(written: Callable[[pa.Table], bytes]) -> None:
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
        (pa.array([1.0, 2.0]), "has lists of floats; got double. Cast it"),
        (pa.array([[1], [2]]), "has lists of floats; got list<.*int64>. Cast it"),
        (pa.array([[1.0], [1.0, 2.0], [1.0]]), "another length: 2 numbers, where most have 1"),
        (pa.array([[1.0], None]), "is null"),
        (pa.array([[1.0], [None]]), "a null inside"),
        (pa.array([None, None], pa.list_(pa.float32())), "nulls alone"),
        (pa.array([[], []], pa.list_(pa.float32())), "have no numbers"),
        (pa.array([[1.0], [1e-60]]), "so small that float32 would make it zero"),
        (views([0] * 50, [3] * 50, [1.0, 2.0, 3.0]), "views of the same numbers"),
        (pa.array([b"\0\0", b"\0\0"]).cast(pa.binary_view()), "got binary_view. Cast it"),
    ],
)
def test_a_column_that_is_no_vectors_of_one_length_is_refused(column: Any, reason: str) -> None:
    with pytest.raises(InvalidImport, match=f"'embedding' .*{reason}"):
        read_vectors(pa.table({"embedding": column}), "embedding")


def test_views_in_any_order_and_tensors_are_read_as_lists() -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(VECTORS, np.float32).reshape(3, 1, 2))
    columns = {"views": views([4, 0, 2], [2, 2, 2], [0.25, 65504.0, 0.0, 3.0, 1.5, -2.0]), "tensors": tensors}

    table = read_table(io.BytesIO(stream(pa.table(columns))))

    assert read_vectors(table, "views").tolist() == VECTORS
    assert read_vectors(table, "tensors").tolist() == VECTORS


def test_every_bad_row_is_counted_and_the_first_hundred_are_named() -> None:
    column = pa.array([[1.0, 2.0] if row % 2 else None for row in range(500)])

    with pytest.raises(BadRows, match=r"^250 rows cannot be stored; the first 100 are listed") as refused:
        read_vectors(pa.table({"embedding": column}), "embedding")

    assert refused.value.errors is not None
    assert [error["row"] for error in refused.value.errors] == list(range(0, 200, 2))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None, "a"]),
        pa.array(["a", "b", None, "a"], pa.large_string()),
        as_views(["a", "b", None, "a"]),
        pa.array(["a", "b", None, "a"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.uint32()), as_views(["a", "b"])),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 0], pa.int8()), pa.array(["a", "b", None])),
    ],
    ids=lambda column: str(column.type),
)
def test_every_form_of_strings_is_read(column: Any) -> None:
    table = read_table(io.BytesIO(stream(pa.table({"id": column}))))

    assert read_strings(table, "id", nullable=True) == ["a", "b", None, "a"]
    with pytest.raises(BadRows, match=r"Row 2: The column 'id' is null"):
        read_strings(table, "id", nullable=False)


def test_ids_that_are_no_strings_are_refused_with_what_to_cast_them_to() -> None:
    for column in (pa.array([b"a"]).cast(pa.binary_view()), pa.array([1]), pa.array([b"a"])):
        with pytest.raises(InvalidImport, match=f"got {column.type}. Cast it to string"):
            read_strings(pa.table({"id": column}), "id", nullable=False)


def test_lists_of_strings_are_read_in_every_form_and_bounded_before_they_are_written_out() -> None:
    texts = as_views(["a", "b", "c"])
    offsets = pa.array([0, 1, 3], pa.int32())
    plain, encoded = (pa.ListArray.from_arrays(offsets, values) for values in (texts, texts.cast(pa.string())))
    overlapping = pa.ListViewArray.from_arrays(pa.array([0] * 9, pa.int32()), pa.array([3] * 9, pa.int32()), texts)

    assert read_string_lists(pa.table({"r": plain}), "r", 3) == [["a"], ["b", "c"]]
    assert read_string_lists(pa.table({"r": encoded}), "r", 3) == [["a"], ["b", "c"]]
    with pytest.raises(InvalidImport, match="more than 26"):
        read_string_lists(pa.table({"r": overlapping}), "r", 26)


def test_columns_that_are_not_known_are_named_with_what_to_do() -> None:
    table = pa.table({"id": ["a"], "width": [1], "height": [2], "metadata": ["{}"]})

    with pytest.raises(InvalidImport, match=r"Drop the others or put them into 'metadata': width, height\."):
        check_columns(table.column_names, {"id", "metadata"}, ["id"])


def test_bad_rows_of_a_table_in_parts_are_counted_once_each_and_named_in_their_order() -> None:
    faults = RowFaults()
    assert faults.reading(read_vectors, pa.table({"embedding": [[1.0], None]}), "embedding", 1) is None
    faults.start = 200
    faults.add([(0, "first"), (1, "too")])
    faults.add([(0, "second")])
    faults.start = 2
    faults.add((row, "late") for row in range(150))

    with pytest.raises(BadRows, match=r"^153 rows cannot be stored; the first 100 are listed. Row 1: ") as refused:
        faults.refuse()

    assert refused.value.errors is not None
    assert [error["row"] for error in refused.value.errors] == list(range(1, 101))


def test_rows_that_are_bad_in_different_ways_are_found_together() -> None:
    faults = RowFaults()
    part = pa.table({"embedding": [[1.0], None, [1.0], [None], [1.0, 2.0], [1e-60]]})

    assert faults.reading(read_vectors, part, "embedding", 1) is None

    with pytest.raises(BadRows, match=r"^4 rows") as refused:
        faults.refuse()
    assert refused.value.errors is not None
    assert [error["row"] for error in refused.value.errors] == [1, 3, 4, 5]


def test_rows_are_as_long_as_is_wanted_not_as_most_are() -> None:
    column = pa.array([[1.0, 2.0], [1.0, 2.0], [1.0]])

    with pytest.raises(BadRows, match=r"^2 rows .* Row 0: .* another length: 2 numbers, not 1\."):
        read_vectors(pa.table({"embedding": column}), "embedding", 1)


UNREADABLE = {
    "second": pa.array([2**62], pa.timestamp("s")),
    "time zone": pa.array([1], pa.timestamp("s", "Mars/Phobos")),
    "day": pa.array([86_400_000 * 2**30], pa.date64()),
    "duration": pa.array([2**62], pa.duration("s")),
    "key twice": pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
    "key that is a list": pa.array([[([1], 1)]], pa.map_(pa.list_(pa.int64()), pa.int64())),
    "field twice": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    "in a dictionary": pa.array([2**62], pa.timestamp("s")).dictionary_encode(),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_values_that_python_has_not_are_refused(name: str) -> None:
    table = read_table(io.BytesIO(stream(pa.table({"metadata": UNREADABLE[name]}))))

    with pytest.raises(InvalidImport, match="has values that cannot be read"):
        plain_values(table.column("metadata"))


@pytest.mark.parametrize("write", [stream, parquet])
def test_a_column_whose_name_is_no_utf_8_is_refused(write: Callable[[pa.Table], bytes]) -> None:
    data = write(pa.table({"id": ["a"], "name": [1]})).replace(b"name", b"\xff\xfe\xfd\xfc")

    with pytest.raises(UnknownFormat, match="not a readable"):
        check_columns(read_table(io.BytesIO(data)).column_names, {"id"}, ["id"])


LONG = "x" * 10_000
TEXTS = {
    "string": lambda values: pa.array(values, pa.string()),
    "large_string": lambda values: pa.array(values, pa.large_string()),
    "string_view": lambda values: pa.array(values, pa.string_view()),
    "dictionary": lambda values: pa.array(values, pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_is_far_too_long_is_named_or_cut_and_never_written_out(kind: str) -> None:
    table = pa.table({"label": TEXTS[kind](["a", LONG, None, "b", LONG])})

    with pytest.raises(BadRows) as refusal:
        read_strings(table, "label", nullable=True)
    cut = read_strings(table, "label", nullable=True, cut=True)

    assert [row for row, _ in refusal.value.faults] == [1, 4]
    assert [cut[0], cut[2], cut[3]] == ["a", None, "b"]
    assert {len(text or "") for text in (cut[1], cut[4])} == {8_193}
