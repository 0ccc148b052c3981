"""Tables that a user sends: read from an Arrow IPC stream or Parquet, and their columns of vectors as arrays."""

from collections.abc import Collection, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.errors import GalleryError, Unprocessable


class UnknownFormat(GalleryError):
    """The bytes are neither Parquet nor an Arrow IPC stream."""

    status_code = 415


class InvalidImport(Unprocessable):
    """The table cannot be stored as it is."""


def read_table(body: BinaryIO) -> pa.Table:
    """Return the whole table, checked to be sound. Raises `UnknownFormat` (415) and `InvalidImport` (422)."""
    magic = body.read(4)
    body.seek(0)

    try:
        if magic == b"PAR1":
            table = pq.read_table(body)
        else:
            with pa.ipc.open_stream(body) as reader:
                table = reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnknownFormat(f"The body is not a readable Parquet file or Arrow IPC stream: {error}") from error
    try:
        # The stream's offsets are the sender's. Unchecked, a wrong one reads this process's memory, or ends it.
        table.validate(full=True)
    except pa.ArrowException as error:
        raise InvalidImport(f"The table is damaged: {error}") from error

    return table


def check_columns(table: pa.Table, known: Collection[str], required: Sequence[str]) -> None:
    """Raise `InvalidImport` (422) unless the table has rows, the required columns, and no others than the known ones,
    each once."""
    if set(table.column_names) - set(known) or len(set(table.column_names)) != len(table.column_names):
        raise InvalidImport(f"Columns are {', '.join(sorted(known))}, each once; got {table.column_names}.")
    for name in required:
        if name not in table.column_names:
            raise InvalidImport(f"The column {name!r} is missing.")
    if table.num_rows == 0:
        raise InvalidImport("The table has no rows.")


def read_strings(table: pa.Table, name: str, *, nullable: bool) -> list[str | None]:
    """Return a column, None for nulls; all of it None where the table has no such column.

    Raises `InvalidImport` (422) for other values than strings, and for nulls that may not be.
    """
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_text_or_null(column.type):
        raise InvalidImport(f"The column {name!r} has strings; got {column.type}.")
    if column.null_count and not nullable:
        raise InvalidImport(f"The column {name!r} has nulls.")
    values: list[str | None] = column.to_pylist()
    return values


def read_string_lists(table: pa.Table, name: str, most: int) -> list[list[str]]:
    """Return a column of lists of strings; none for nulls, and where the table has no such column.

    Raises `InvalidImport` (422) for other values, for nulls inside the lists, and for more than `most` strings in all.
    """
    if name not in table.column_names:
        return [[] for _ in range(table.num_rows)]
    column = table.column(name)
    kind = column.type
    if pa.types.is_null(kind):
        return [[] for _ in range(table.num_rows)]
    if not ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text_or_null(kind.value_type)):
        raise InvalidImport(f"The column {name!r} has lists of strings; got {kind}.")
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise InvalidImport(f"The column {name!r} has nulls inside its lists.")
    if len(flat) > most:
        raise InvalidImport(f"The lists of column {name!r} have more than {most} strings.")
    return [values or [] for values in column.to_pylist()]


def read_vectors(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a column of one row or more as (N, D) float32; values that are not finite pass.

    Raises `InvalidImport` (422) unless all rows are lists of as many floats, none of them null.
    """
    column = table.column(name)
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InvalidImport(f"The column {name!r} has lists of numbers; got {kind}.")
    if not pa.types.is_floating(kind.value_type):
        raise InvalidImport(f"The column {name!r} has lists of floats; got {kind}.")
    lengths = pc.list_value_length(column)
    if column.null_count or pc.min(lengths).as_py() != pc.max(lengths).as_py():
        raise InvalidImport(f"The rows of column {name!r} have different lengths or nulls.")
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise InvalidImport(f"The column {name!r} has nulls inside its vectors.")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused by name before it is stored
        values: NDArray[np.float32] = flat.to_numpy().astype(np.float32, copy=False)
    return values.reshape(table.num_rows, -1)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text_or_null(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_null(kind))
