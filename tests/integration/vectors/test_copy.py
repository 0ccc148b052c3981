"""Embeddings through binary COPY: what is written is what SQL sees and what is read, to the bit."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from psycopg import sql

from service.vectors.copy import read_rows, write_rows
from service.vectors.rows import EmbeddingRows, StoredDtype, UnexpectedRow, VectorFormat

TABLE = "Embeddings of a test"  # a name that has to be quoted

DTYPES: tuple[StoredDtype, ...] = ("float16", "float32")

FORMATS = [VectorFormat(5, side, dtype) for side in (None, 3) for dtype in DTYPES]

ALL = f'SELECT * FROM "{TABLE}" ORDER BY item_id'


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield connection
        connection.rollback()


def create_table(connection: psycopg.Connection, vector_format: VectorFormat, not_null: str = "NOT NULL") -> None:
    """Make an empty TABLE, also when there was one."""
    columns = ", ".join(f"{name} {sql_type} {not_null}" for name, sql_type in vector_format.sql_types.items())
    connection.execute(f'DROP TABLE IF EXISTS "{TABLE}"')
    connection.execute(f'CREATE TEMPORARY TABLE "{TABLE}" ({columns})')


def some_rows(count: int, vector_format: VectorFormat) -> EmbeddingRows:
    random = np.random.default_rng(count)
    side_dim = vector_format.side_information_dim

    def values(dim: int) -> NDArray[Any]:
        return random.standard_normal((count, dim)).astype(vector_format.dtype)

    return EmbeddingRows(
        item_id=np.arange(count, dtype=np.int64) * 2**40 + 1,
        revision=random.integers(0, 2**62, count),
        origin=random.integers(1, 5, count).astype(np.int16),
        hops=random.integers(0, 5, count).astype(np.int16),
        uncertainty=np.where(random.random(count) < 0.5, np.nan, random.random(count)).astype(np.float32),
        embedding=values(vector_format.embedding_dim),
        side_information=None if side_dim is None else values(side_dim),
    )


def read_all(connection: psycopg.Connection, vector_format: VectorFormat, **options: int) -> EmbeddingRows:
    return EmbeddingRows.concatenate(list(read_rows(connection, ALL, (), vector_format, **options)))


def assert_same_bits(left: EmbeddingRows, right: EmbeddingRows) -> None:
    for name in ("item_id", "revision", "origin", "hops", "uncertainty", "embedding", "side_information"):
        expected, found = getattr(left, name), getattr(right, name)
        if expected is None:
            assert found is None
            continue
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.dtype.isnative
        assert found.tobytes() == expected.tobytes()  # -0.0 is not 0.0 here


def storable(dtype: StoredDtype, shape: tuple[int, int]) -> st.SearchStrategy[NDArray[Any]]:
    """Arrays of every finite value, the least and the largest more often."""
    width: Literal[16, 32] = 16 if dtype == "float16" else 32
    limits = np.finfo(dtype)
    special = [0.0, -0.0, float(limits.max), float(limits.min), float(limits.tiny), float(limits.smallest_subnormal)]
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    return hnp.arrays(np.dtype(dtype), shape, elements=finite | st.sampled_from(special))


@st.composite
def rows_of_a_format(draw: st.DrawFn) -> tuple[VectorFormat, EmbeddingRows]:
    dims = st.integers(1, 5)
    vector_format = VectorFormat(draw(dims), draw(st.none() | dims), draw(st.sampled_from(DTYPES)))
    count = draw(st.integers(0, 6))
    small_numbers = hnp.arrays(np.int16, count, elements=st.integers(-(2**15), 2**15 - 1))
    whole_numbers = hnp.arrays(np.int64, count, elements=st.integers(-(2**63), 2**63 - 1))
    ids = draw(hnp.arrays(np.int64, count, elements=st.integers(-(2**63), 2**63 - 1), unique=True))
    side_dim = vector_format.side_information_dim
    return vector_format, EmbeddingRows(
        item_id=np.sort(ids),
        revision=draw(whole_numbers),
        origin=draw(small_numbers),
        hops=draw(small_numbers),
        uncertainty=draw(hnp.arrays(np.float32, count, elements=st.floats(width=32))),
        embedding=draw(storable(vector_format.dtype, (count, vector_format.embedding_dim))),
        side_information=None if side_dim is None else draw(storable(vector_format.dtype, (count, side_dim))),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_of_a_format(), st.integers(1, 7))
def test_rows_are_read_back_to_the_bit(
    connection: psycopg.Connection, drawn: tuple[VectorFormat, EmbeddingRows], rows_per_chunk: int
) -> None:
    vector_format, rows = drawn
    create_table(connection, vector_format)

    written = write_rows(connection, TABLE, rows, vector_format)
    chunks = list(read_rows(connection, ALL, (), vector_format, rows_per_chunk))

    assert written == len(rows)
    assert [len(chunk) for chunk in chunks[:-1]] == [rows_per_chunk] * (len(chunks) - 1)
    if len(rows) == 0:
        assert chunks == []
    else:
        assert_same_bits(rows, EmbeddingRows.concatenate(chunks))


@pytest.mark.parametrize("vector_format", FORMATS)
def test_sql_sees_the_values_that_were_written(connection: psycopg.Connection, vector_format: VectorFormat) -> None:
    create_table(connection, vector_format)
    rows = some_rows(50, vector_format)

    write_rows(connection, TABLE, rows, vector_format)

    seen = connection.execute(
        sql.SQL(
            "SELECT item_id, revision, origin, hops, uncertainty, embedding::text{} FROM {} ORDER BY item_id"
        ).format(
            sql.SQL(", side_information::text" if rows.side_information is not None else ""), sql.Identifier(TABLE)
        )
    ).fetchall()
    assert [row[0] for row in seen] == rows.item_id.tolist()
    assert [row[1] for row in seen] == rows.revision.tolist()
    assert [row[2] for row in seen] == rows.origin.tolist()
    assert [row[3] for row in seen] == rows.hops.tolist()
    np.testing.assert_array_equal(np.array([row[4] for row in seen], np.float32), rows.uncertainty)
    np.testing.assert_array_equal(_parsed([row[5] for row in seen], vector_format), rows.embedding)
    if rows.side_information is not None:
        np.testing.assert_array_equal(_parsed([row[6] for row in seen], vector_format), rows.side_information)


@pytest.mark.parametrize("vector_format", FORMATS)
def test_what_sql_wrote_is_read(connection: psycopg.Connection, vector_format: VectorFormat) -> None:
    create_table(connection, vector_format)
    side = ", '[-0.5,2,1e-4]'" if vector_format.side_information_dim else ""
    connection.execute(
        sql.SQL(
            "INSERT INTO {} VALUES (7, -9, 3, 2, 0.25, '[1,-2.5,0,6e-8,65504]'{})"
        ).format(  # 6e-8 is subnormal in float16
            sql.Identifier(TABLE), sql.SQL(side)
        )
    )

    rows = read_all(connection, vector_format)

    assert (rows.item_id.tolist(), rows.revision.tolist(), rows.origin.tolist()) == ([7], [-9], [3])
    assert (rows.hops.tolist(), rows.uncertainty.tolist()) == ([2], [0.25])
    expected = np.array([[1, -2.5, 0, 6e-8, 65504]], vector_format.dtype)
    np.testing.assert_array_equal(rows.embedding, expected)
    if rows.side_information is not None:
        np.testing.assert_array_equal(rows.side_information, np.array([[-0.5, 2, 1e-4]], vector_format.dtype))


@pytest.mark.parametrize("rows_per_chunk", [1, 1_000, 8_192, 19_999, 20_000, 20_001, 10**6])
def test_chunks_are_full_but_the_last_wherever_the_stream_is_cut(
    connection: psycopg.Connection, rows_per_chunk: int
) -> None:
    vector_format = VectorFormat(5, 3, "float16")
    create_table(connection, vector_format)
    count = 200 if rows_per_chunk == 1 else 20_000
    rows = some_rows(count, vector_format)
    write_rows(connection, TABLE, rows, vector_format)

    chunks = list(read_rows(connection, ALL, (), vector_format, rows_per_chunk))

    full, rest = divmod(count, rows_per_chunk)
    assert [len(chunk) for chunk in chunks] == [rows_per_chunk] * full + ([rest] if rest else [])
    assert_same_bits(rows, EmbeddingRows.concatenate(chunks))


def test_rows_of_many_chunks_are_written_in_one_copy(connection: psycopg.Connection) -> None:
    vector_format = VectorFormat(5, None, "float32")
    create_table(connection, vector_format)
    parts = [some_rows(count, vector_format) for count in (1, 0, 9_000)]
    parts[0].item_id -= 1

    written = write_rows(connection, TABLE, iter(parts), vector_format)

    assert written == 9_001
    assert_same_bits(EmbeddingRows.concatenate(parts), read_all(connection, vector_format))


def test_parameters_are_values_whatever_they_hold(connection: psycopg.Connection) -> None:
    vector_format = VectorFormat(5, None, "float16")
    create_table(connection, vector_format)
    write_rows(connection, TABLE, some_rows(10, vector_format), vector_format)
    query = f"SELECT * FROM \"{TABLE}\" WHERE item_id = ANY(%s) AND %s <> '%%s' ORDER BY item_id"

    chunks = list(read_rows(connection, query, ([1, 2**40 + 1], "'); DROP TABLE items; --%s\\"), vector_format))

    assert np.concatenate([chunk.item_id for chunk in chunks]).tolist() == [1, 2**40 + 1]
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_a_row_without_a_vector_is_an_error_wherever_it_is(connection: psycopg.Connection) -> None:
    vector_format = VectorFormat(5, 3, "float16")
    for place in (0, 5, 9):
        create_table(connection, vector_format, not_null="")
        write_rows(connection, TABLE, some_rows(10, vector_format), vector_format)
        connection.execute(
            sql.SQL("UPDATE {} SET side_information = NULL WHERE item_id = %s").format(sql.Identifier(TABLE)),
            (place * 2**40 + 1,),
        )

        for rows_per_chunk in (1, 3, 100):
            with pytest.raises(UnexpectedRow), connection.transaction():
                read_all(connection, vector_format, rows_per_chunk=rows_per_chunk)


@pytest.mark.parametrize(
    "other", [VectorFormat(4, 3, "float16"), VectorFormat(5, None, "float16"), VectorFormat(5, 3, "float32")]
)
def test_a_table_of_another_format_is_not_read_as_this_one(connection: psycopg.Connection, other: VectorFormat) -> None:
    vector_format = VectorFormat(5, 3, "float16")
    create_table(connection, vector_format)
    write_rows(connection, TABLE, some_rows(100, vector_format), vector_format)

    with pytest.raises(UnexpectedRow, match=r"unexpected|another width"), connection.transaction():
        read_all(connection, other)


def test_the_same_width_in_another_shape_is_not_read_either(connection: psycopg.Connection) -> None:
    written, asked = VectorFormat(2, 4, "float16"), VectorFormat(4, 2, "float16")
    create_table(connection, written)
    write_rows(connection, TABLE, some_rows(3, written), written)

    with pytest.raises(UnexpectedRow, match="embedding_length"):
        read_all(connection, asked)


def test_a_reader_may_stop_early_and_the_connection_goes_on(connection: psycopg.Connection) -> None:
    vector_format = VectorFormat(5, None, "float16")
    create_table(connection, vector_format)
    write_rows(connection, TABLE, some_rows(100_000, vector_format), vector_format)
    connection.commit()

    reader = read_rows(connection, ALL, (), vector_format, rows_per_chunk=10)
    first = next(iter(reader))
    del reader
    connection.rollback()

    assert len(first) == 10
    assert len(read_all(connection, vector_format)) == 100_000


@pytest.mark.parametrize("field", ["embedding", "side_information"])
@pytest.mark.parametrize("wrong", ["dtype", "width", "one number", "missing"])
def test_vectors_that_numpy_would_bend_to_fit_are_refused(
    connection: psycopg.Connection, field: str, wrong: str
) -> None:
    vector_format = VectorFormat(5, 3, "float16")
    create_table(connection, vector_format)
    rows = some_rows(4, vector_format)
    vectors = getattr(rows, field)
    bent = {"dtype": vectors.astype(np.float32), "width": vectors[:, :2], "one number": vectors[:, :1], "missing": None}
    setattr(rows, field, bent[wrong])

    with pytest.raises(ValueError, match=f"^{field} is"), connection.transaction():
        write_rows(connection, TABLE, rows, vector_format)

    assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(TABLE))).fetchone() == (0,)


def test_side_information_is_not_dropped_where_the_table_has_none(connection: psycopg.Connection) -> None:
    vector_format = VectorFormat(5, None, "float16")
    create_table(connection, vector_format)

    with pytest.raises(ValueError, match="side_information is"), connection.transaction():
        write_rows(connection, TABLE, some_rows(4, VectorFormat(5, 3, "float16")), vector_format)


def test_the_database_refuses_values_that_are_not_finite(connection: psycopg.Connection) -> None:
    for vector_format in FORMATS:
        create_table(connection, vector_format)
        rows = some_rows(4, vector_format)
        for value in (np.inf, np.nan):
            rows.embedding[2, 1] = value
            with pytest.raises(psycopg.errors.DataException), connection.transaction():
                write_rows(connection, TABLE, rows, vector_format)


def _parsed(texts: list[str], vector_format: VectorFormat) -> NDArray[Any]:
    return np.array([[float(value) for value in text.strip("[]").split(",")] for text in texts], vector_format.dtype)
