"""How an upgraded gallery gets better while items are encoded anew, in which order they come, and the curve's area as
FastFill has it (Jaeckle et al., ICLR 2023, and its released code)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.judging import RECIPES, Galleries, cell, head, interval, line, shares_closed
from benchmarks.paper.transformations import SEEDS, Spec, Vectors
from models.durable import write_atomically
from models.judging.backfilling import POINTS, largest_first, partly_encoded
from models.metrics import query_metrics

_METRICS = ("CMC@1", "CMC@5", "mAP")
_SPEC = Spec("old", "simclr", "new")
_TEXT = (
    "The gallery is encoded anew step by step, and asked by φ_new. AUC is FastFill's (Jaeckle et al., ICLR 2023): the"
    " plain mean over 22 points, 0 to 100 % in equal steps; AUC-G is the share of the gap from old/old to new/new that"
    " it closes.\n\n"
)


class Order(StrEnum):
    """Which items are encoded first: random ones; those of the largest predicted squared error of h; the farthest from
    the mean of what h gives of the gallery's items of their label; those of the largest true squared error, which only
    encoding all of them tells."""

    RANDOM = "random"
    UNCERTAINTY = "uncertainty"
    OWN_CLASS_MEAN = "distance to own class mean"
    ORACLE = "true squared error"


def orders(
    transformed: Vectors,
    encoded: Vectors,
    labels: NDArray[np.int64],
    seed: int,
    uncertainty: NDArray[np.float32] | None = None,
) -> dict[Order, NDArray[np.int64]]:
    """Return (N,) positions by each order, the first to be encoded first; equals stay in the gallery's order.

    transformed: (N, D) by h, encoded: (N, D) by φ_new; uncertainty: (N,) the predicted squared errors of h, without
    which there is no such order. `seed` is the random order's.
    """
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), transformed.shape[1]))
    np.add.at(sums, class_of, transformed)
    means = sums / counts[:, None]
    found = {Order.RANDOM: np.random.default_rng(seed).permutation(len(labels))}
    if uncertainty is not None:
        found[Order.UNCERTAINTY] = largest_first(uncertainty)
    found[Order.OWN_CLASS_MEAN] = largest_first(np.square(transformed - means[class_of]).sum(axis=1))
    found[Order.ORACLE] = largest_first(np.square(transformed - encoded).sum(axis=1))
    return found


@dataclass(frozen=True)
class Curve:
    """points: (22, 3) CMC@1, CMC@5 and mAP in percent, by the share that is encoded; of_queries: (3, Q) the means over
    the points of each query's hits at 1 and at 5 and average precision."""

    points: NDArray[np.float64]
    of_queries: NDArray[np.float64]

    def area(self) -> NDArray[np.float64]:
        """Return (3,) the plain means over the points."""
        means: NDArray[np.float64] = self.points.mean(axis=0)
        return means


def backfilling_curve(
    transformed: Vectors, encoded: Vectors, labels: NDArray[np.int64], order: NDArray[np.int64]
) -> Curve:
    """Ask galleries of which 0/21, 1/21, ..., 21/21 of the items, rounded down, are encoded by φ_new, and the others
    transformed, with every item as a query encoded by φ_new; each query goes without itself. L2."""
    count = len(labels)
    points, of_queries = np.zeros((POINTS, 3)), np.zeros((3, count))
    for point, gallery in enumerate(partly_encoded(transformed, encoded, order)):
        found = query_metrics(encoded, labels, gallery, labels, self_match=True)
        scores = np.stack([found.first_match_ranks < 1, found.first_match_ranks < 5, found.average_precisions])
        points[point] = 100 * np.nanmean(scores, axis=1)
        of_queries += scores / POINTS
    return Curve(points, of_queries)


def _kept_curve(
    folder: Path, transformed: Vectors, encoded: Vectors, labels: NDArray[np.int64], order: NDArray[np.int64]
) -> Curve:
    """Return the curve; computed only if `folder` lacks that of the same bytes."""
    digest = hashlib.sha256()
    for values in (transformed, encoded, labels, order):
        digest.update(np.ascontiguousarray(values).tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.npy"
    if not path.exists():
        curve = backfilling_curve(transformed, encoded, labels, order)
        folder.mkdir(parents=True, exist_ok=True)
        kept = np.concatenate([curve.points.T, curve.of_queries], axis=1)  # (3, 22 + Q)
        write_atomically(path, lambda part: _write(part, kept))
    kept = np.load(path)
    return Curve(kept[:, :POINTS].T, kept[:, POINTS:])


def _write(path: Path, values: NDArray[np.float64]) -> None:
    with path.open("wb") as stream:
        np.save(stream, values)


class Backfilling:
    """The table of areas, and the curves. `expected_errors` gives the squared errors, (N,), that an h expects of the
    gallery's items; the paper's recipe does not say."""

    def __init__(
        self, galleries: Galleries, folder: Path, expected_errors: Callable[[Spec], NDArray[np.float32]]
    ) -> None:
        self._galleries = galleries
        self._folder = folder / "backfilling"
        self._expected_errors = expected_errors

    def curves(self) -> str:
        found = {recipe: self._of_recipe(recipe) for recipe in RECIPES}
        return _TEXT + "\n".join([self._areas(found), self._differences(found), *map(_points, found, found.values())])

    def _of_recipe(self, recipe: str) -> dict[Order, list[Curve]]:
        """Return the curve of each seed by each order."""
        encoded, labels = self._galleries.vectors(_SPEC.new), self._galleries.labels
        found: dict[Order, list[Curve]] = {}
        for seed in SEEDS:
            spec = replace(_SPEC, variant=recipe, seed=seed)
            transformed = self._galleries.gallery(spec)
            expected = None if recipe == "paper" else self._expected_errors(spec)
            by_order = orders(transformed, encoded, labels, seed, expected)
            for order, positions in by_order.items():
                curve = _kept_curve(self._folder, transformed, encoded, labels, positions)
                found.setdefault(order, []).append(curve)
        return found

    def _areas(self, found: Mapping[str, Mapping[Order, list[Curve]]]) -> str:
        low, high = (self._galleries.direct(name, name).values() for name in (_SPEC.old, _SPEC.new))
        text = head(
            "h",
            "order",
            *(f"AUC {name}" for name in _METRICS),
            *(f"AUC-G {name}" for name in _METRICS),
            "CMC@1 at 0 %",
            "lowest CMC@1",
        )
        text += line("old/old", "", *(cell(column) for column in low.T), *["0.0"] * 3, "", "")
        for recipe, by_order in found.items():
            for order, curves in by_order.items():
                areas = np.array([curve.area() for curve in curves])  # (seeds, 3)
                closed = shares_closed(areas, low, high)
                starts, lowest = (np.array([at(curve.points[:, 0]) for curve in curves]) for at in (_first, np.min))
                cells = [*(cell(column) for column in areas.T), *(cell(column, 1) for column in closed.T)]
                text += line(recipe, order, *cells, cell(starts), cell(lowest))
        return text + line("new/new", "", *(cell(column) for column in high.T), *["100.0"] * 3, "", "")

    def _differences(self, found: Mapping[str, Mapping[Order, list[Curve]]]) -> str:
        """Areas against the random order's, paired over queries drawn by whole classes."""
        text = head("difference", *(f"AUC {name}" for name in _METRICS))
        for recipe, by_order in found.items():
            scores = {
                order: np.mean([curve.of_queries for curve in curves], axis=0) for order, curves in by_order.items()
            }
            for order in by_order:
                if order is not Order.RANDOM:
                    pairs = zip(scores[Order.RANDOM], scores[order], strict=True)
                    cells = [interval(*pair, self._galleries.labels) for pair in pairs]
                    text += line(f"{recipe}, {order}, against random", *cells)
        return text


def _first(values: NDArray[np.float64]) -> float:
    return float(values[0])


def _points(recipe: str, by_order: Mapping[Order, list[Curve]]) -> str:
    """Return the curves themselves, means over the seeds."""
    means = [np.mean([curve.points for curve in curves], axis=0) for curves in by_order.values()]
    text = f"CMC@1 / CMC@5 / mAP by the share that is encoded, {recipe}:\n\n" + head("encoded", *by_order)
    for point in range(POINTS):
        cells = [" / ".join(f"{value:.2f}" for value in mean[point]) for mean in means]
        text += line(f"{100 * point / (POINTS - 1):.1f} %", *cells)
    return text
