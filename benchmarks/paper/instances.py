"""Retrieval of the item itself: each image's second view must find that image, and no label counts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.classes import SETS
from benchmarks.paper.judging import Galleries, Parts, cell, head, interval, line, own_item_ranks, shares_closed
from benchmarks.paper.open_classes import OPEN, OPEN_RECIPES
from benchmarks.paper.set_ups import LARGE, LARGE_RECIPES
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors
from models.metrics import negative_flip_rate, positive_flip_rate

Ranks = list[NDArray[np.int64]]  # of each seed, (Q,): how many items are nearer than the query's own
_TEXT = (
    "Each test image's second view (a crop of a fifth to all of it, mirrored, recoloured, blurred: `views.py`) is the"
    " query, and only that image is right. h has learned from classes 0 to 79 alone, the known ones.\n\n"
)


class Instances:
    """The tables; h has learned from some of the classes that φ_new knows."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def small(self) -> str:
        """The photographs as they are."""
        return _TEXT + self._table(Galleries(self._features), OPEN, OPEN_RECIPES)

    def large(self) -> str:
        """ResNet-18 at 128 pixels."""
        return self._table(Galleries(self._features, like=LARGE.new), LARGE, LARGE_RECIPES)

    def _table(self, galleries: Galleries, spec: Spec, recipes: Sequence[str]) -> str:
        assert spec.classes is not None
        parts = galleries.parts(SETS[spec.classes])
        rows = _ranks(galleries, spec, recipes)
        old, new = rows["old/old"], rows["new/new"]
        columns = ("found first", "found in 10", "G first", "G in 10", "negative flips", "positive flips")
        text = head("second view/gallery", "queries", *columns)
        for part, chosen in parts.items():
            for name, ranks in rows.items():
                text += line(name, part, *_cells(*(_of(each, chosen) for each in (ranks, old, new))))
        return f"{text}\n{_differences(rows, recipes, parts, galleries.labels)}"


def _ranks(galleries: Galleries, spec: Spec, recipes: Sequence[str]) -> dict[str, Ranks]:
    """Return each row's ranks; h/h transforms what the old version's networks give of the second views."""
    views = galleries.second_views(spec.new)
    old_view = galleries.second_views(spec.old)
    side_view = None if spec.side is None else galleries.second_views(spec.side)
    rows = {"old/old": [own_item_ranks(old_view, galleries.vectors(spec.old))]}
    for recipe in recipes:
        of_seeds = [replace(spec, variant=recipe, seed=seed) for seed in SEEDS]
        made = [galleries.gallery(each) for each in of_seeds]
        rows[f"new/h, {recipe}"] = [own_item_ranks(views, gallery) for gallery in made]
        asked: list[Vectors] = [galleries.transformed(each, old_view, side_view) for each in of_seeds]
        rows[f"h/h, {recipe}"] = [own_item_ranks(query, gallery) for query, gallery in zip(asked, made, strict=True)]
    rows["new/new"] = [own_item_ranks(views, galleries.vectors(spec.new))]
    return rows


def _cells(ranks: Ranks, old: Ranks, new: Ranks) -> list[str]:
    values, low, high = (_found(each) for each in (ranks, old, new))
    closed = shares_closed(values, low, high)
    flips = [
        100 * np.mean([rate(old[0] < 1, each < 1) for each in ranks])
        for rate in (negative_flip_rate, positive_flip_rate)
    ]
    return [
        *(cell(column) for column in values.T),
        *(cell(column, 1) for column in closed.T),
        *map("{:.1f}".format, flips),
    ]


def _differences(rows: dict[str, Ranks], recipes: Sequence[str], parts: Parts, labels: NDArray[np.int64]) -> str:
    """Paired differences from the first recipe, and that one's from old/old, as every table has them."""
    text = head("difference", "queries", "found first", "found in 10")
    for recipe in recipes:
        against = "old/old" if recipe == recipes[0] else f"new/h, {recipes[0]}"
        for part, chosen in parts.items():
            before, after = _of(rows[against], chosen), _of(rows[f"new/h, {recipe}"], chosen)
            cells = [interval(_hits(before, k), _hits(after, k), labels[chosen]) for k in (1, 10)]
            text += line(f"new/h, {recipe}, against {against}", part, *cells)
    return text


def _found(ranks: Ranks) -> NDArray[np.float64]:
    """Return (seeds, 2): in how many percent of the queries the item is found first, and in 10."""
    return np.array([[100 * float((each < k).mean()) for k in (1, 10)] for each in ranks])


def _hits(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """Return (Q,) means over the seeds."""
    hits: NDArray[np.float64] = np.mean([each < k for each in ranks], axis=0)
    return hits


def _of(ranks: Ranks, chosen: NDArray[np.bool_]) -> Ranks:
    return [each[chosen] for each in ranks]
