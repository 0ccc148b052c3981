"""Parquet of paired vectors: the same images' features under two model versions, computed by the user."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.domain.training.files import FeatureRows, TrainingFiles, Vectors, label_numbers
from service.durable import file_sha256
from service.errors import GalleryError, TooLarge, Unprocessable
from service.tables import ModelVersion
from service.vectors.arrow import UnknownFormat, plain_values, read_vectors, refuse_unknown_columns
from service.vectors.arrow_bytes import is_text

_REQUIRED = ("embedding_from", "embedding_to")
_OPTIONAL = ("side_information_from", "side_information_to", "label")
_ROWS_AT_ONCE = 32_768


class InvalidPairs(Unprocessable):
    """The rows cannot be learned from as they are."""


class TooManyRows(TooLarge):
    """The rows would take more memory than a training may."""


@dataclass(frozen=True)
class StoredPairs:
    """How many rows were stored, and the SHA-256 of the source: a file's own, or that of several files' together."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class PairLimits:
    """What rows must be like; a dimension is None where the version has no side-information."""

    before: ModelVersion
    after: ModelVersion
    least_rows: int
    max_bytes: int

    def dims(self) -> dict[str, int | None]:
        return {
            "embedding_from": self.before.embedding_dim,
            "side_information_from": self.before.side_information_dim,
            "embedding_to": self.after.embedding_dim,
            "side_information_to": self.after.side_information_dim,
        }


def store_pairs(
    sources: Sequence[BinaryIO | Path], limits: PairLimits, with_g: bool, files: TrainingFiles
) -> StoredPairs:
    """Check every row and store them all, a part at a time; nothing stays when a row is refused.

    Raises `UnknownFormat` (415), `InvalidPairs` and `InvalidImport` (422), and `TooManyRows` (413).
    """
    with ExitStack() as stack:
        for source in sources:
            _refuse_arrow(source)
        with _reading():
            opened = [stack.enter_context(pq.ParquetFile(source)) for source in sources]
            columns = _check_columns([file.schema_arrow.names for file in opened], limits, with_g)
            rows = _check_size(opened, limits, columns)
        try:
            first = 0
            for table in _tables(opened, columns):
                files.add_rows(first, first + table.num_rows, _feature_rows(table, limits))
                first += table.num_rows
        except BaseException:
            files.remove()
            raise
    return StoredPairs(rows, _sha256(sources))


def check_bytes(rows: int, dims: Iterable[int | None], max_bytes: int, chained: int = 0) -> None:
    """Raise `TooManyRows` (413) when so many rows of float32 vectors take more than `max_bytes`: as they are, and once
    more by each of so many chained transformations."""
    plain = rows * sum(dim or 0 for dim in dims) * 4
    needed = plain * (1 + chained)
    if needed <= max_bytes:
        return
    refusal = f"The features of {rows} rows take {needed} bytes; a training may take {max_bytes}."
    if chained:
        refusal += f" Without what {chained} chained transformations give (options.chained: false), they take {plain}."
    raise TooManyRows(refusal)


def _refuse_arrow(source: BinaryIO | Path) -> None:
    """Raise `UnknownFormat` (415), with what to do, for Arrow's own formats: their rows cannot be read in parts that
    are bounded before they are decoded."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return _refuse_arrow(stream)
    start = source.read(6)
    source.seek(0)
    if start == b"ARROW1" or start[:4] in (b"FEA1", b"\xff\xff\xff\xff"):
        raise UnknownFormat(
            "The pairs are Arrow; a training reads Parquet. Write the same table with pyarrow.parquet.write_table, or"
            " polars' write_parquet."
        )
    return None


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except GalleryError:
        raise
    except Exception as error:  # what is damaged may make the reader raise anything
        raise UnknownFormat(f"The pairs are not a readable Parquet file: {error}") from error


def _check_columns(found: Sequence[list[str]], limits: PairLimits, with_g: bool) -> list[str]:
    columns = found[0]
    if any(set(others) != set(columns) for others in found):
        raise InvalidPairs("The Parquet files have different columns.")
    refuse_unknown_columns(columns, (*_REQUIRED, *_OPTIONAL))
    missing = [name for name in _REQUIRED if name not in columns]
    if with_g and "side_information_to" not in columns:
        missing.append("side_information_to")
    if missing:
        raise InvalidPairs(f"The column {missing[0]!r} is missing{', and g learns from it' if with_g else ''}.")

    for name, version in (("side_information_from", limits.before), ("side_information_to", limits.after)):
        if name in columns and version.side_information_dim is None:
            raise InvalidPairs(
                f"Model version {version.name!r} has no side-information, but there is a column {name!r}."
            )
    return columns


def _check_size(opened: Sequence[pq.ParquetFile], limits: PairLimits, columns: list[str]) -> int:
    rows: int = sum(file.metadata.num_rows for file in opened)
    if rows < limits.least_rows:
        raise InvalidPairs(f"A training needs at least {limits.least_rows} rows; there are {rows}.")
    dims = limits.dims()
    check_bytes(rows, (dims[name] for name in columns if name in dims), limits.max_bytes)

    for file in opened:
        # Before anything is decoded: a small file can hold vectors of any length, and labels.
        size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
        if size > limits.max_bytes:
            raise TooManyRows(
                f"The pairs take {size} bytes when they are read; a training may take {limits.max_bytes}."
            )
        for name in dims:
            values, dim = _count_values(file, name), dims[name]
            if dim is not None and values > file.metadata.num_rows * dim:
                raise InvalidPairs(f"Rows of {name!r} are longer than the {dim} numbers of their model version.")
    return rows


def _count_values(file: pq.ParquetFile, name: str) -> int:
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == name)


def _tables(opened: Sequence[pq.ParquetFile], columns: list[str]) -> Iterator[pa.Table]:
    for file in opened:
        with _reading():
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns)
        while True:
            with _reading():
                batch = next(batches, None)
            if batch is None:
                break
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _feature_rows(table: pa.Table, limits: PairLimits) -> FeatureRows:
    found = {name: dim for name, dim in limits.dims().items() if name in table.column_names}
    vectors: dict[str, NDArray[Any]] = {name: _vectors(table, name, dim) for name, dim in found.items()}
    return FeatureRows(**vectors, labels=_labels(table))


def _vectors(table: pa.Table, name: str, dim: int | None) -> Vectors:
    values = read_vectors(table, name)
    if values.shape[1] != dim:
        raise InvalidPairs(f"Rows of {name!r} have {values.shape[1]} numbers; their model version has {dim}.")
    if not np.isfinite(values).all():
        raise InvalidPairs(f"The column {name!r} has values that are not finite.")
    return values


def _labels(table: pa.Table) -> NDArray[np.int64] | None:
    if "label" not in table.column_names:
        return None
    column = table.column("label")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_text(kind) or pa.types.is_integer(kind)):
        raise InvalidPairs(f"The column 'label' has strings or whole numbers; got {kind}. Cast it to string.")
    labels = plain_values(column)
    if None in labels:
        raise InvalidPairs("The column 'label' has nulls: every row has a label, or none has.")
    return label_numbers([str(label) for label in labels])


def _sha256(sources: Sequence[BinaryIO | Path]) -> str:
    digests = [file_sha256(source) for source in sources]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
