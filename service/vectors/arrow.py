"""Tables that a user sends: read from an Arrow IPC stream or Parquet, and their columns of vectors as arrays."""

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
