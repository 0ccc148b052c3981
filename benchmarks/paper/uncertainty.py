"""Whether the errors that h expects of its outputs are those that it makes, and whether distances should know them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.classes import SETS
from benchmarks.paper.judging import Galleries, cell, head, line
from benchmarks.paper.open_classes import OPEN
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors, expected_errors
from models.statistics import reliability

_COSTS = (0.0, 0.1, 0.3, 1.0)
_TENTHS = 10
_TEXT = (
    "The squared error that the default recipe's h expects of each item's embedding, against the true one, of the"
    " classes that it learned from (0 to 79) and of the others; means over {seeds} seeds. The items are in tenths by"
    " what is expected of them.\n\n"
)
_DISTANCE_TEXT = (
    "\nWith it as one more coordinate of the gallery, ‖q - h‖² + c·v, of which a query has 0: c = 0 is what is served."
    "\n\n"
)


class Uncertainty:
    """The table of tenths, and that of distances."""

    def __init__(self, galleries: Galleries, features: Features) -> None:
        self._galleries = galleries
        self._features = features
        assert OPEN.classes is not None
        self._parts = galleries.parts(SETS[OPEN.classes])

    def tables(self) -> str:
        return _TEXT.format(seeds=len(SEEDS)) + self._tenths() + _DISTANCE_TEXT + self._distances()

    def _tenths(self) -> str:
        titles = ["queries", "rank correlation", "mean", *(str(number) for number in range(1, _TENTHS + 1))]
        text = head(*titles)
        for part, chosen in self._parts.items():
            found = [
                reliability(expected[chosen], true[chosen], _TENTHS) for expected, true in map(self._errors, SEEDS)
            ]
            correlation = cell(np.array([each.rank_correlation for each in found]))
            for kind in ("expected", "true"):
                tenths = np.array([getattr(each, kind) for each in found])  # (seeds, 10)
                means = [f"{value:.2f}" for value in (tenths.mean(), *tenths.mean(axis=0))]
                text += line(f"{part}, {kind}", correlation if kind == "expected" else "", *means)
        return text

    def _distances(self) -> str:
        text = head("c", "queries", "CMC@1", "CMC@5", "mAP", "own item first")
        for cost in _COSTS:
            judged = self._galleries.judged(self._with_coordinate(cost, seed) for seed in SEEDS)
            for part, chosen in self._parts.items():
                values = judged.of(chosen)
                cells = [*(cell(column) for column in values.values().T), cell(values.own_item_found())]
                text += line(f"{cost:g}", part, *cells)
        return text

    def _with_coordinate(self, cost: float, seed: int) -> tuple[Vectors, Vectors]:
        """Return the queries and the gallery, (N, D + 1) each."""
        expected, _ = self._errors(seed)
        coordinate = np.sqrt(cost * expected)[:, None]
        query, gallery = self._galleries.vectors(OPEN.new), self._galleries.gallery(_spec(seed))
        return np.concatenate([query, np.zeros_like(coordinate)], axis=1), np.concatenate([gallery, coordinate], axis=1)

    def _errors(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (N,) expected and true squared errors of the test images."""
        expected = expected_errors(self._features, _spec(seed))
        difference = self._galleries.gallery(_spec(seed)) - self._galleries.vectors(OPEN.new)
        return expected, np.square(difference).sum(axis=1)


def _spec(seed: int) -> Spec:
    return replace(OPEN, variant="default", seed=seed)
