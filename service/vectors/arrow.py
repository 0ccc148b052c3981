"""Tables that a user sends: Parquet, an Arrow IPC stream or an Arrow IPC file (Feather), and their columns as arrays.

Columns come in many types for the same values: what polars, pandas, datasets and Arrow itself write is read; anything
else is refused with what to cast it to. A column of few bytes may stand for many values (a dictionary, overlapping
views): none is written out before it is known to be no larger than what it is made of.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.errors import GalleryError, Unprocessable
from service.vectors.arrow_bytes import is_list, is_text, is_view, text_bytes
from service.vectors.bounded_tables import (
    ROWS_AT_ONCE,
    OpenTable,
    TableLimits,
    open_file,
    open_parquet,
    open_stream,
)

SHOWN = 100  # bad rows that a refusal names
_LONGEST_TEXT_BYTES = 8_192  # an image URI of 2,048 characters of four bytes
_STANDS_FOR_LONG_TEXT = "…" * (_LONGEST_TEXT_BYTES + 1)

_Arguments = ParamSpec("_Arguments")
_Read = TypeVar("_Read")


class UnknownFormat(GalleryError):
    """The bytes are neither Parquet nor Arrow's."""

    status_code = 415


class InvalidImport(Unprocessable):
    """The table cannot be stored as it is."""


class BadRows(InvalidImport):
    """Some rows of the table cannot be stored: how many, and the first of them with what is wrong."""

    def __init__(self, faults: Sequence[tuple[int, str]], count: int | None = None) -> None:
        """`faults` are rows with sentences, in order, and `count` is how many rows are bad where not all are given."""
        self.faults = faults
        count = count or len({row for row, _ in faults})
        row, sentence = faults[0]
        message = f"Row {row}: {sentence}"
        if count > 1:
            message = f"{count} rows cannot be stored; the first {min(count, SHOWN)} are listed. {message}"
        super().__init__(message, [{"row": row, "detail": sentence} for row, sentence in faults[:SHOWN]])


class RowFaults:
    """What is wrong with the rows of a table that is read in parts: all bad ones are counted, the first are named."""

    def __init__(self) -> None:
        self.start = 0  # of the part that is being read
        self._named: dict[int, str] = {}
        self._bad: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._bad)

    def add(self, faults: Iterable[tuple[int, str]]) -> None:
        """Note bad rows of the part."""
        found = {self.start + row: sentence for row, sentence in faults}
        if not found:
            return
        self._bad.update(found)
        self._named = dict(sorted((found | self._named).items())[:SHOWN])

    def reading(
        self,
        read: Callable[Concatenate[pa.Table, _Arguments], _Read],
        part: pa.Table,
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Read | None:
        """Return what `read` makes of the part; None where it raises `BadRows`. Then these are noted, and those that it
        finds among the other rows."""
        rows, all_rows = list(range(part.num_rows)), part.num_rows
        while rows:
            try:
                found = read(part, *args, **kwargs)
            except BadRows as error:
                self.add((rows[place], sentence) for place, sentence in error.faults)
                bad = {place for place, _ in error.faults}
                kept = [place for place in range(len(rows)) if place not in bad]
                rows = [rows[place] for place in kept]
                part = pa.concat_tables([part.slice(0, 0), *(part.slice(place, 1) for place in kept)])
            else:
                return found if len(rows) == all_rows else None
        return None

    def refuse(self) -> None:
        """Raise `BadRows` (422) if there are any."""
        if self._bad:
            raise BadRows(list(self._named.items()), len(self._bad))


@contextmanager
def open_table(body: BinaryIO, limits: TableLimits) -> Iterator[OpenTable]:
    """Open a table, whose batches are sound, have rows, and are some rows each.

    Raises `UnknownFormat` (415), `InvalidImport` (422) and `TableTooLarge` (413), here or while it is read.
    """
    magic = body.read(6)
    body.seek(0)
    kind = open_parquet if magic[:4] == b"PAR1" else open_file if magic == b"ARROW1" else open_stream
    with ExitStack() as stack:
        with _readable():
            table = stack.enter_context(kind(body, limits))
        yield OpenTable(table.schema, _some_rows(_sound(table.batches)))


def read_table(body: BinaryIO, limits: TableLimits | None = None) -> pa.Table:
    """Return the whole table. Raises as `open_table` does."""
    with open_table(body, limits or TableLimits()) as table:
        return pa.Table.from_batches(list(table.batches), table.schema)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except GalleryError:
        raise
    except Exception as error:  # what is damaged may make the reader raise anything
        raise UnknownFormat(
            f"The body is not a readable Parquet file, Arrow IPC stream or Arrow IPC file (Feather version 2): {error}"
        ) from error


def _sound(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while True:
        with _readable():
            batch = next(batches, None)
        if batch is None:
            return
        try:
            # The offsets are the sender's. Unchecked, a wrong one reads this process's memory, or ends it.
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise InvalidImport(f"The table is damaged: {error}") from error
        yield batch


def _some_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.slice(start, ROWS_AT_ONCE)


def check_columns(found: Sequence[str], known: Collection[str], required: Sequence[str]) -> None:
    """Raise `InvalidImport` (422) unless the found columns are the required ones, and no others than the known ones,
    each once."""
    refuse_unknown_columns(found, known, " or put them into 'metadata'" if "metadata" in known else "")
    for name in required:
        if name not in found:
            raise InvalidImport(f"The column {name!r} is missing.")


def refuse_no_rows(rows: int) -> None:
    """Raise `InvalidImport` (422) for a table of no rows."""
    if rows == 0:
        raise InvalidImport("The table has no rows.")


def refuse_unknown_columns(names: Sequence[str], known: Collection[str], instead: str = "") -> None:
    """Raise `InvalidImport` (422) for columns that are not known or occur twice; `instead` is what else can be done
    than to drop them."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidImport(f"Columns are {', '.join(sorted(known))}. Drop the others{instead}: {', '.join(unknown)}.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InvalidImport(f"A column occurs once; drop the repeated ones of {', '.join(twice)}.")


def read_strings(table: pa.Table, name: str, *, nullable: bool, cut: bool = False) -> list[str | None]:
    """Return a column, None for nulls; all of it None where the table has no such column.

    Raises `InvalidImport` (422) for other values than strings, for nulls that may not be, and for text of more than
    8,192 bytes, unless it may be `cut` by who refuses it for its length: some 8,193 characters stand for it then.
    """
    if name not in table.column_names:
        return [None] * table.num_rows
    column = _storage(table.column(name))
    if not is_text(column.type) and not pa.types.is_null(column.type):
        raise InvalidImport(f"The column {name!r} has strings; got {column.type}. Cast it to string.")
    if column.null_count == len(column) and not nullable:
        raise InvalidImport(f"The column {name!r} has nulls alone.")
    too_long = _rows_longer_than(column, _LONGEST_TEXT_BYTES)
    if too_long and not cut:
        sentence = f"The text of {name!r} takes more than {_LONGEST_TEXT_BYTES:,} bytes."
        raise BadRows([(row, sentence) for row in too_long])
    values = _short_values(column, too_long)
    missing = [] if nullable else [row for row, value in enumerate(values) if value is None]
    if missing:
        raise BadRows([(row, f"The column {name!r} is null.") for row in missing])
    return values


def _rows_longer_than(column: pa.ChunkedArray, most: int) -> list[int]:
    """Return the rows of a column of text that take more bytes than that, before any is made a Python string."""
    if pa.types.is_null(column.type):
        return []
    lengths = [text_bytes(chunk) for chunk in column.chunks]
    found: list[int] = np.flatnonzero(np.concatenate(lengths) > most).tolist() if lengths else []
    return found


def _short_values(column: pa.ChunkedArray, too_long: Sequence[int]) -> list[str | None]:
    """Return the values of text, with a stand-in for the rows that are too long."""
    if not too_long:
        values: list[str | None] = plain_values(column)
        return values
    values, start = [], 0
    for row in [*too_long, len(column)]:
        values += plain_values(column.slice(start, row - start))
        values.append(_STANDS_FOR_LONG_TEXT)
        start = row + 1
    return values[: len(column)]


def read_string_lists(table: pa.Table, name: str, most: int) -> list[list[str]]:
    """Return a column of lists of strings; none for nulls, and where the table has no such column.

    Raises `InvalidImport` (422) for other values, for nulls inside the lists, and for more than `most` strings in all.
    """
    if name not in table.column_names:
        return [[] for _ in range(table.num_rows)]
    column = _storage(table.column(name))
    kind = column.type
    if pa.types.is_null(kind):
        return [[] for _ in range(table.num_rows)]
    if not (is_list(kind) and (is_text(kind.value_type) or pa.types.is_null(kind.value_type))):
        raise InvalidImport(f"The column {name!r} has lists of strings; got {kind}. Cast it to list<string>.")
    if (pc.sum(pc.list_value_length(column)).as_py() or 0) > most:
        raise InvalidImport(f"The lists of column {name!r} have more than {most} strings.")
    found: list[list[str] | None] = column.to_pylist()
    bad = [row for row, values in enumerate(found) if values is not None and None in values]
    if bad:
        raise BadRows([(row, f"The list of column {name!r} has a null inside.") for row in bad])
    return [values or [] for values in found]


def read_vectors(table: pa.Table, name: str, dim: int | None = None) -> NDArray[np.float32]:
    """Return a column of one row or more as (N, D) float32; values that are not finite pass.

    Lists of float16, float32 or float64 of every kind are read, and tensors of one shape, whose values follow each
    other in a row. Raises `InvalidImport` (422) unless all rows are lists of `dim` numbers, or of as many as the others
    where that is None, and no number is null.
    """
    column = _storage(table.column(name))
    kind = column.type
    if not is_list(kind) or not pa.types.is_floating(kind.value_type):
        raise InvalidImport(
            f"The column {name!r} has lists of floats; got {kind}. Cast it to lists of float16, float32 or float64."
        )
    dim = _length(column, name, dim)
    flat = pc.list_flatten(column)
    if flat.null_count:
        rows = np.unique(np.flatnonzero(pc.is_null(flat).to_numpy()) // dim)
        raise BadRows([(int(row), f"The vector of {name!r} has a null inside.") for row in rows])
    given = flat.to_numpy()
    with np.errstate(over="ignore", under="ignore"):  # what overflows becomes infinite, and is refused by name
        values: NDArray[np.float32] = given.astype(np.float32, copy=False).reshape(table.num_rows, dim)
    if given.dtype == np.float64:
        lost = np.flatnonzero(~values.any(axis=1))
        lost = lost[given.reshape(table.num_rows, dim)[lost].any(axis=1)]
        if len(lost):
            sentence = f"The vector of {name!r} is so small that float32 would make it zero."
            raise BadRows([(int(row), sentence) for row in lost])
    return values


def read_numbers(table: pa.Table, name: str, *, whole: bool) -> NDArray[np.float64]:
    """Return a column of numbers as (N,) float64, NaN for nulls; all of it NaN where the table has no such column.

    Raises `InvalidImport` (422) for other values than floats, or than whole numbers where they are to be `whole`.
    """
    if name not in table.column_names or pa.types.is_null(table.column(name).type):
        return np.full(table.num_rows, np.nan)
    column = table.column(name)
    if not (pa.types.is_integer(column.type) if whole else pa.types.is_floating(column.type)):
        raise InvalidImport(f"The column {name!r} has {'whole numbers' if whole else 'floats'}; got {column.type}.")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _length(column: pa.ChunkedArray, name: str, wanted: int | None) -> int:
    """Return how many numbers each row has. Raises `BadRows` for rows that are null, or have not as many as are wanted:
    as most have, where that is not known."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    found, counts = np.unique(lengths[lengths >= 0], return_counts=True)
    if wanted is None and len(found) == 0:
        raise InvalidImport(f"The column {name!r} has nulls alone.")
    dim = int(found[np.argmax(counts)]) if wanted is None else wanted
    due = f"where most have {dim}" if wanted is None else f"not {dim}"
    bad = np.flatnonzero(lengths != dim)
    if len(bad):
        sentences = [
            (int(row), f"The column {name!r} is null.")
            if lengths[row] < 0
            else (int(row), f"The vector of {name!r} has another length: {lengths[row]} numbers, {due}.")
            for row in bad
        ]
        raise BadRows(sentences)
    if dim == 0:
        raise InvalidImport(f"The vectors of {name!r} have no numbers.")
    if is_view(column.type) and len(column) * dim > sum(len(chunk.values) for chunk in column.chunks):
        raise InvalidImport(f"The rows of {name!r} are views of the same numbers: cast it to list<float>.")
    return dim


def plain_values(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; those of a dictionary are the same objects wherever they occur.

    Raises `InvalidImport` (422) for values that Python has not: a date too far away, a key that occurs twice, text that
    is not UTF-8.
    """
    column = _storage(column)
    try:
        if not pa.types.is_dictionary(column.type):
            return list(column.to_pylist(maps_as_pydicts="strict"))
        values: list[Any] = []
        for chunk in column.chunks:
            used = chunk.indices.unique().drop_null().to_pylist()  # a part of a table may use few of many
            entries = {index: chunk.dictionary[index].as_py(maps_as_pydicts="strict") for index in used}
            values += [entries.get(index) for index in chunk.indices.to_pylist()]
    except Exception as error:  # each type of Arrow has errors of its own
        raise InvalidImport(f"A column of {column.type} has values that cannot be read: {error}") from error
    return values


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what an extension type, such as a tensor or JSON, is stored as."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
