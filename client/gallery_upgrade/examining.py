"""What is there in a gallery that lives in files, before it is brought in: counted, and said in sentences."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_UNIT = 1e-3
_FLOAT16_MOST = 65_504.0
_SAMPLED = 2_000  # rows by which clouds are looked for
_LEAST_SAMPLED = 50
_APART = 3.0
_COMPARED = 500  # rows of each cloud
_LEAST_GAP = 0.05  # between cosines, or of the mean norm: what is less is of no account
_LEAST_SHARE = 0.01
_LEAST_DIMENSION = 8  # with fewer, directions are alike by chance
_ROUNDS = 20
_FLOAT16_LOSS = 0.01  # of a vector's norm: what the service refuses to lose


@dataclass
class Findings:
    """Counts of rows. `dimensions` has how many rows have each; `unit_norm` those of norm 1 within 0.1 %;
    `lost_in_float16` those that a gallery of float16 refuses. `clouds` is 2 where a sample of the vectors falls into
    two clouds as those of two models do, `smaller_cloud` the share of the smaller one then, and `separation` by how
    much that is more than chance. `store` is what a store says of itself, and `advice` what to do about it all."""

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
    clouds: int = 1
    smaller_cloud: float | None = None
    separation: float | None = None
    store: dict[str, Any] = field(default_factory=dict)
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
    sample = _Sample()
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
            sample.take(vectors)
    if ids:
        found.duplicate_ids = found.rows - pc.count_distinct(pa.chunked_array(ids), mode="all").as_py()
    if marks:
        together = np.concatenate(marks)
        found.duplicate_vectors = len(together) - len(np.unique(together))
    _look_for_clouds(found, sample.vectors())
    found.advice = _advice(found)
    return found


def add_store(found: Findings, description: "Mapping[str, Any]", faults: "Sequence[str]", seconds: float) -> None:
    """Add to the findings what a store says of itself, what of it could not be read, and what an upgrade of it there
    would need and cost; `seconds` are those that reading all of it took."""
    found.store = dict(description)
    found.advice += faults
    rows, side = description["rows"], description["side_information_dim"]
    needs = f"model versions of {description['embedding_dim']} numbers"
    needs += "" if side is None else f" with side-information of {side}"
    found.advice.append(f"An upgrade of it where it is needs {needs}, and a transformation from theirs to a new one.")
    number_bytes = 2 if description["dtype"] == "float16" else 4
    found.advice.append(
        f"It costs {rows * number_bytes:,} bytes in the store for every number of the new embedding, and reads it"
        f" three times, which took {seconds:.1f} s once from here."
    )
    if not description["notices_writes"]:
        found.advice.append("The store does not say what is written meanwhile: pause writes for the cutover.")
    if description.get("warning"):
        found.advice.append(description["warning"])


class _Sample:
    """Some rows of each dimension, spread over all tables: of each as many as there is room for, then every other one
    of those kept is given up for every other one that comes."""

    def __init__(self) -> None:
        self._parts: dict[int, list[NDArray[np.float64]]] = {}
        self._every: dict[int, int] = {}

    def take(self, vectors: "NDArray[np.floating[Any]]") -> None:
        import numpy as np

        dimension = vectors.shape[1]
        every = self._every.setdefault(dimension, 1)
        parts = self._parts.setdefault(dimension, [])
        parts.append(np.asarray(vectors[::every], np.float64))
        while sum(map(len, parts)) > 2 * _SAMPLED:
            self._every[dimension] *= 2
            parts[:] = [np.concatenate(parts)[::2]]

    def vectors(self) -> "NDArray[np.float64]":
        """Return the rows of the dimension that most have, (N, D), finite ones."""
        import numpy as np

        if not self._parts:
            return np.empty((0, 0))
        kept: NDArray[np.float64] = np.concatenate(max(self._parts.values(), key=lambda parts: sum(map(len, parts))))
        finite: NDArray[np.float64] = kept[np.isfinite(kept).all(axis=1)]
        return finite


def _look_for_clouds(found: Findings, vectors: "NDArray[np.float64]") -> None:
    """Say whether vectors (N, D) are two clouds: two vectors of one cloud are more alike than two of different clouds,
    for 95 in 100 pairs of each kind. Classes of one model are not: those that are not the one class are not alike,
    either. Else, whether their norms are of two kinds.
    """
    import numpy as np

    if len(vectors) < _LEAST_SAMPLED:
        return
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.maximum(norms, 1e-30)[:, None]
    scaled: NDArray[np.float64] = (norms / max(float(norms.mean()), 1e-30))[:, None]
    for gap_of, points in ((_gap_of_cosines, unit), (_gap_of_numbers, scaled)):
        if points is unit and vectors.shape[1] < _LEAST_DIMENSION:
            continue
        for first, second in _beginnings(points):
            mask = _second_cloud(points, first, second)
            share = min(float(mask.mean()), 1 - float(mask.mean()))
            if share >= _LEAST_SHARE and (gap := gap_of(points, mask)) > 0:
                found.clouds, found.smaller_cloud, found.separation = 2, share, gap
                return


def _gap_of_cosines(unit: "NDArray[np.float64]", second: "NDArray[np.bool_]") -> float:
    """Return by how much more alike two of one cloud are than two of different ones, by their cosines: the 5th
    percentile of the former, of the cloud where it is less, less the 95th of the latter, and less what is of no
    account."""
    import numpy as np

    clouds = [unit[second][:_COMPARED], unit[~second][:_COMPARED]]
    within = min(
        float(np.percentile((cloud @ cloud.T)[np.triu_indices(len(cloud), 1)], 5)) if len(cloud) > 1 else -1.0
        for cloud in clouds
    )
    return within - float(np.percentile(clouds[0] @ clouds[1].T, 95)) - _LEAST_GAP


def _gap_of_numbers(points: "NDArray[np.float64]", second: "NDArray[np.bool_]") -> float:
    """Return by how much farther apart the means of two clouds of numbers, (N, 1) of mean 1, are than three times their
    standard deviations together (a normal cloud that is cut in half: 1.3 times), and than what is of no account."""
    distance = abs(float(points[second].mean() - points[~second].mean()))
    width = float(points[second].std() + points[~second].std())
    return min(distance - _APART * width, distance - _LEAST_GAP)


def _beginnings(points: "NDArray[np.float64]") -> "Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]":
    """Give pairs of points, (D,) each, that a clustering may begin with: the ends of the longest axis, and the point
    that is farthest from the mean with the one that is farthest from it."""
    import numpy as np

    centred = points - points.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    yield points[along.argmin()], points[along.argmax()]
    first = points[np.linalg.norm(centred, axis=1).argmax()]
    yield first, points[np.linalg.norm(points - first, axis=1).argmax()]


def _second_cloud(
    points: "NDArray[np.float64]", first: "NDArray[np.float64]", second: "NDArray[np.float64]"
) -> "NDArray[np.bool_]":
    """Return which of (N, D) points are in the second of two clusters, (N,), by 2-means that begin with two points."""
    import numpy as np

    mask = np.zeros(len(points), bool)
    for _ in range(_ROUNDS):
        nearer: NDArray[np.bool_] = np.linalg.norm(points - second, axis=1) < np.linalg.norm(points - first, axis=1)
        if (nearer == mask).all() or not nearer.any() or nearer.all():
            break
        mask = nearer
        first, second = points[~mask].mean(axis=0), points[mask].mean(axis=0)
    return mask


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
    if found.clouds > 1:
        advice.append(
            f"Vectors are two clouds, {found.smaller_cloud:.0%} of them in the smaller one: most likely of two models;"
            " part them, since h is from one. (Two models whose clouds lie on one another are not told apart.)"
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
