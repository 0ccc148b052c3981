"""What it is worth to encode a gallery again, item by item: how answers get better with the share that is done, and
from which share on more of it is hardly worth its time.

A gallery whose items h made is encoded again step by step, in an order, and asked by φ_new at every step, as FastFill
does (Jaeckle et al., ICLR 2023, section 3). N items, Q = N queries, which are the same images; each goes without its
own item.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.judging.intervals import Draws, Interval, Labels, score_difference
from models.judging.rankings import Scores, overlap
from models.judging.search import nearest_items
from models.metrics import Metric, Vectors

POINTS = 22  # 0 %, 20 between, 100 %
_K = 10


@dataclass(frozen=True)
class Items:
    """queries: (N, D) float32 by φ_new; transformed: (N, D) what h made of the items; again: (N, D) what they become
    when they are encoded again, the queries themselves where that is from the same images; labels: (N,) class numbers,
    -1 without one."""

    queries: Vectors
    transformed: Vectors
    again: Vectors
    labels: Labels

    def __len__(self) -> int:
        return len(self.queries)


def shares() -> NDArray[np.float64]:
    """Return (22,) the shares at which a curve has its points."""
    return np.arange(POINTS) / (POINTS - 1)


def largest_first(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N,) -> (N,) positions, the largest value's first; equals stay in their order, and NaN comes last."""
    return np.argsort(-values, kind="stable")


def partly_encoded(transformed: Vectors, again: Vectors, order: NDArray[np.int64]) -> Iterator[Vectors]:
    """Give the gallery, (N, D), at each of the 22 points: 0/21, 1/21, ..., 21/21 of its items, rounded down, are
    encoded again, the first ones of an order (N,)."""
    gallery = transformed.copy()
    for point in range(POINTS):
        done = order[: point * len(order) // (POINTS - 1)]
        gallery[done] = again[done]
        yield gallery


def has_classes(items: Items) -> bool:
    """Return whether most items have another one of their label: then they can be judged by it."""
    return bool(_judged_by_label(items.labels).mean() >= 0.5)


def curve_scores(items: Items, order: NDArray[np.int64], metric: Metric) -> NDArray[np.float64]:
    """Return (22, Q) scores of each query at each point: CMC@1 where `has_classes`, NaN for a query that no other item
    shares its label with; else the share of the ten nearest of new/new that it finds.

    Raises ValueError for queries that are not finite, and for fewer than two items.
    """
    if len(items) < 2:
        raise ValueError("One item has no neighbours.")
    ids = np.arange(len(items))
    wanted = nearest_items(items.queries, [(ids, items.queries)], _K, metric, ids).ids
    by_label = has_classes(items)
    scores = []
    for gallery in partly_encoded(items.transformed, items.again, order):
        found = nearest_items(items.queries, [(ids, gallery)], _K, metric, ids).ids
        scores.append(_hits(items.labels, found) if by_label else overlap(wanted, found))
    return np.stack(scores)


def gains(scores: NDArray[np.float64], labels: Labels, draws: Draws) -> list[Interval]:
    """(22, Q) -> of each point, the mean gain over the first one, with its interval."""
    return [score_difference(scores[0], of_point, labels, draws) for of_point in scores]


def area(scores: NDArray[np.float64]) -> float:
    """(22, Q) -> the plain mean over the points of the queries' mean: FastFill's area under the curve."""
    return float(np.nanmean(scores, axis=1).mean())


def knee_of(curve: list[Interval]) -> float | None:
    """Return the share at which a curve is highest above the straight line to its end (Satopää et al., ICDCSW, 2011);
    None where it does not certainly end higher than it began. A straight one has its knee at its end."""
    if curve[-1].low <= 0:
        return None
    heights = np.array([point.value for point in curve]) - shares() * curve[-1].value
    highest = int(np.argmax(heights))
    return float(shares()[highest]) if heights[highest] > 0 else 1.0


def _judged_by_label(labels: Labels) -> NDArray[np.bool_]:
    _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (counts[group] > 1) & (labels >= 0)


def _hits(labels: Labels, found: NDArray[np.int64]) -> Scores:
    hits = (labels[found[:, 0]] == labels).astype(np.float64)
    return np.where(_judged_by_label(labels), hits, np.nan)
