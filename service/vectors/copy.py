"""Binary COPY between PostgreSQL and numpy structured arrays. No Python loop touches a row."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql

from service.vectors.rows import EmbeddingRows, UnexpectedRow, VectorFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of the header's extension
_TRAILER = b"\xff\xff"
_WRITE_ROWS = 8_192


def read_rows(
    connection: psycopg.Connection,
    query: str,
    parameters: Sequence[object],
    vector_format: VectorFormat,
    rows_per_chunk: int = 16_384,
) -> Iterator[EmbeddingRows]:
    """Run a query as COPY and give its rows in chunks of up to `rows_per_chunk`.

    The query selects the format's columns. The connection is busy until the iterator ends. Raises `UnexpectedRow` when
    a row has another width, such as one with a NULL.
    """
    statement = f"COPY ({query}) TO STDOUT (FORMAT BINARY)"
    with connection.cursor() as cursor:
        chunk_bytes = rows_per_chunk * vector_format.row_dtype.itemsize
        pending = bytearray()
        skipped = 0

        with cursor.copy(statement, parameters or None) as copy:
            for block in copy:
                if skipped < len(_HEADER):  # the header comes first, in the first block
                    cut = min(len(_HEADER) - skipped, len(block))
                    skipped += cut
                    block = block[cut:]
                pending += block
                while len(pending) >= chunk_bytes + len(_TRAILER):
                    yield _parse(bytes(pending[:chunk_bytes]), vector_format)
                    del pending[:chunk_bytes]

        if bytes(pending[-len(_TRAILER) :]) != _TRAILER:
            raise UnexpectedRow("A COPY stream ended without its trailer.")
        if len(pending) > len(_TRAILER):
            yield _parse(bytes(pending[: -len(_TRAILER)]), vector_format)


def write_rows(
    connection: psycopg.Connection,
    table: str,
    rows: EmbeddingRows | Iterable[EmbeddingRows],
    vector_format: VectorFormat,
) -> int:
    """COPY rows into a table with the format's columns, and return how many.

    Raises `ValueError` for vectors of another shape or dtype than the format's; nothing is written then.
    """
    names = vector_format.column_names
    statement = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)").format(
        table=sql.Identifier(table), columns=sql.SQL(", ").join(map(sql.Identifier, names))
    )
    written = 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_HEADER)
        for part in [rows] if isinstance(rows, EmbeddingRows) else rows:
            _check_vectors(part, vector_format)
            for start in range(0, len(part), _WRITE_ROWS):
                copy.write(_format(part, slice(start, start + _WRITE_ROWS), vector_format))
            written += len(part)
        copy.write(_TRAILER)
    return written


def _check_vectors(rows: EmbeddingRows, vector_format: VectorFormat) -> None:
    """Refuse vectors that numpy would fit silently: it rounds to another dtype, and repeats one number over a row."""
    expected = {"embedding": vector_format.embedding_dim, "side_information": vector_format.side_information_dim}
    for name, dim in expected.items():
        vectors = getattr(rows, name)
        found = None if vectors is None else (vectors.shape, vectors.dtype.name)
        wanted = None if dim is None else ((len(rows), dim), vector_format.dtype)
        if found != wanted:
            raise ValueError(f"{name} is {found}; the table's rows want {wanted}.")


def _format(rows: EmbeddingRows, part: slice, vector_format: VectorFormat) -> memoryview:
    array = np.repeat(vector_format.template, len(rows.item_id[part]))
    for name in vector_format.column_names:
        array[name] = getattr(rows, name)[part]
    return array.view(np.uint8).data


def _parse(data: bytes, vector_format: VectorFormat) -> EmbeddingRows:
    if len(data) % vector_format.row_dtype.itemsize:
        raise UnexpectedRow("A row of a COPY stream has another width than its generation's rows.")

    array: NDArray[Any] = np.frombuffer(data, vector_format.row_dtype)

    template = vector_format.template
    assert vector_format.row_dtype.names is not None
    for name in vector_format.row_dtype.names:
        fixed = name == "field_count" or name.endswith(("_length", "_dim"))
        if fixed and not (array[name] == template[name][0]).all():
            raise UnexpectedRow(f"A row of a COPY stream has an unexpected {name}; is a value NULL?")

    native = np.float16 if vector_format.dtype == "float16" else np.float32
    has_side_information = vector_format.side_information_dim is not None
    return EmbeddingRows(
        item_id=array["item_id"].astype(np.int64),
        revision=array["revision"].astype(np.int64),
        origin=array["origin"].astype(np.int16),
        hops=array["hops"].astype(np.int16),
        uncertainty=array["uncertainty"].astype(np.float32),
        embedding=array["embedding"].astype(native),
        side_information=array["side_information"].astype(native) if has_side_information else None,
    )
