"""What is there in a gallery that lives in files, before it is brought in: counted, and said in sentences."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_UNIT = 1e-3
_FLOAT16_MOST = 65_504.0
_FLOAT16_LOSS = 0.01  # of a vector's norm: what the service refuses to lose


@dataclass
class Findings:
    """Counts of rows. `dimensions` has how many rows have each; `unit_norm` those of norm 1 within 0.1 %;
    `lost_in_float16` those that a gallery of float16 refuses; `advice` what to do about it."""

    rows: int = 0
    dimensions: dict[int, int] = field(default_factory=dict)
    dtype: str = ""
    has_side_information: bool = False
    unit_norm: int = 0
    zero: int = 0
    not_finite: int = 0
    lost_in_float16: int = 0
    duplicate_ids: int = 0
    duplicate_vectors: int = 0
    smallest_norm: float | None = None
    largest_norm: float | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether an import would refuse some of it as it is."""
        return bool(self.not_finite or self.duplicate_ids or self.lost_in_float16 or len(self.dimensions) != 1)


def examine(tables: "Iterable[pa.Table]") -> Findings:
    """Read tables with the columns id and embedding once, one after another, and say what is in them.

    What is held of a row is its id and 8 bytes. Raises ValueError for a table without these columns.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    found = Findings()
    ids: list[Any] = []
    marks: list[NDArray[np.uint64]] = []
    for table in tables:
        missing = {"id", "embedding"} - set(table.column_names)
        if missing:
            raise ValueError(f"The column {' and '.join(sorted(missing))} is missing; there are {table.column_names}.")
        found.rows += table.num_rows
        found.has_side_information |= "side_information" in table.column_names
        ids.append(pc.cast(table["id"].combine_chunks(), pa.string()))
        for vectors in _by_dimension(table["embedding"].combine_chunks()):
            _count(found, vectors)
            marks.append(_marks(vectors))
    if ids:
        found.duplicate_ids = found.rows - pc.count_distinct(pa.chunked_array(ids), mode="all").as_py()
    if marks:
        together = np.concatenate(marks)
        found.duplicate_vectors = len(together) - len(np.unique(together))
    found.advice = _advice(found)
    return found


def _by_dimension(column: "pa.Array") -> "list[NDArray[np.floating[Any]]]":
    """Return (N, D) arrays of the rows of each dimension D."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_fixed_size_list(column.type):
        return [column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = column.flatten().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return [
        values[starts[lengths == dimension][:, None] + np.arange(dimension)]
        for dimension in np.unique(lengths).tolist()
    ]


def _count(found: Findings, vectors: "NDArray[np.floating[Any]]") -> None:
    import numpy as np

    rows, dimension = vectors.shape
    found.dimensions[dimension] = found.dimensions.get(dimension, 0) + rows
    found.dtype = found.dtype or vectors.dtype.name
    if not rows or not dimension:
        return
    wide = vectors.astype(np.float64)
    finite = np.isfinite(wide).all(axis=1)
    found.not_finite += int((~finite).sum())
    wide = wide[finite]
    norms = np.linalg.norm(wide, axis=1)
    found.zero += int((norms == 0).sum())
    found.unit_norm += int((np.abs(norms - 1) <= _UNIT).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        lost = np.linalg.norm(wide - wide.astype(np.float16).astype(np.float64), axis=1)
    too_large = np.abs(wide).max(axis=1, initial=0.0) > _FLOAT16_MOST
    found.lost_in_float16 += int((too_large | (lost > _FLOAT16_LOSS * norms)).sum())
    if len(norms):
        found.smallest_norm = min(float(norms.min()), np.inf if found.smallest_norm is None else found.smallest_norm)
        found.largest_norm = max(float(norms.max()), 0.0 if found.largest_norm is None else found.largest_norm)


def _marks(vectors: "NDArray[np.floating[Any]]") -> "NDArray[np.uint64]":
    """Return a number of 64 bits for each row (N,): equal for equal rows, and else hardly ever."""
    import numpy as np

    words = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32).astype(np.uint64)
    weights = np.random.default_rng(words.shape[1]).integers(1, 2**64, words.shape[1], dtype=np.uint64, endpoint=False)
    with np.errstate(over="ignore"):
        mixed: NDArray[np.uint64] = (words * (weights | np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return mixed


def _advice(found: Findings) -> list[str]:
    """Return a sentence for each thing that an import, or an upgrade after it, needs to be told."""
    if not found.rows:
        return ["There are no rows."]
    advice = []
    if len(found.dimensions) > 1:
        advice.append(
            f"Rows have several dimensions {sorted(found.dimensions)}: they are of several models; part them."
        )
    if found.not_finite:
        advice.append(
            f"{found.not_finite} vectors have NaN or infinity and would be refused: encode their images again."
        )
    if found.duplicate_ids:
        advice.append(f"{found.duplicate_ids} ids occur again: an id is one item's.")
    if found.lost_in_float16:
        advice.append(f"{found.lost_in_float16} vectors do not fit float16: create the gallery with dtype float32.")
    if found.zero:
        advice.append(f"{found.zero} vectors are zero, which the metric cosine refuses: there is nothing in them.")
    if found.duplicate_vectors:
        advice.append(f"{found.duplicate_vectors} vectors equal another one: the same image twice, or a default value.")
    if found.unit_norm == found.rows:
        advice.append("All vectors have norm 1: cosine, l2 and ip order neighbours alike.")
    elif found.unit_norm < found.rows / 2:
        advice.append("Vectors are not normalised: take the metric that they were made for.")
    if not found.has_side_information:
        advice.append("There is no side-information: an upgrade rests on the embedding alone, and its report tells.")
    return advice
