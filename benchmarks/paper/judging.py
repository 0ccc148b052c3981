"""How a gallery is judged, and the form that every table has.

Test images are queries and gallery. By class, each query goes without its own image, and what is found must have its
label; by item, each query's own image must be found. L2, as the paper's code has it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.paper.transformations import (
    SEEDS,
    VARIANTS,
    Features,
    Spec,
    Vectors,
    apply,
    as_levels,
    linear_map,
    load,
)
from models.metrics import RetrievalPerQuery, first_match_ranks, negative_flip_rate, positive_flip_rate, query_metrics
from models.normalize import l2_normalize
from models.statistics import paired_bootstrap

RECIPES = ("paper", "default")
Parts = Mapping[str, NDArray[np.bool_]]  # (Q,) which queries each has
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Judged:
    """One gallery's results, a seed of h each. own_item_ranks: (Q,) int64, how many items are nearer to each query than
    its own."""

    seeds: tuple[RetrievalPerQuery, ...]
    own_item_ranks: tuple[NDArray[np.int64], ...]

    def values(self) -> NDArray[np.float64]:
        """Return (seeds, 3): CMC@1, CMC@5 and mAP in percent."""
        return np.array([_percent(metrics) for metrics in self.seeds])

    def own_item_found(self, within: int = 1) -> NDArray[np.float64]:
        """Return (seeds,) in how many percent of the queries their own item is among so many nearest."""
        return np.array([100 * float((ranks < within).mean()) for ranks in self.own_item_ranks])

    def of(self, chosen: NDArray[np.bool_]) -> "Judged":
        """Return the results of some of the queries, (Q,)."""
        return Judged(
            tuple(
                RetrievalPerQuery(metrics.first_match_ranks[chosen], metrics.average_precisions[chosen])
                for metrics in self.seeds
            ),
            tuple(ranks[chosen] for ranks in self.own_item_ranks),
        )

    def scores(self) -> tuple[NDArray[np.float64], ...]:
        """Return each query's hits at 1 and at 5, its average precision, and whether its own item is found first: (Q,)
        means over the seeds."""
        hits = [np.mean([metrics.first_match_ranks < k for metrics in self.seeds], axis=0) for k in (1, 5)]
        precisions = np.mean([metrics.average_precisions for metrics in self.seeds], axis=0)
        return (*hits, precisions, np.mean([ranks < 1 for ranks in self.own_item_ranks], axis=0))

    def flips(self, before: "Judged") -> tuple[float, float]:
        """Return in how many percent of the queries the nearest item had the query's label before alone, and after
        alone: the negative and positive flips, means over the seeds."""
        was_hit = before.seeds[0].first_match_ranks < 1
        hits = [metrics.first_match_ranks < 1 for metrics in self.seeds]
        negative, positive = (
            100 * float(np.mean([rate(was_hit, hit) for hit in hits]))
            for rate in (negative_flip_rate, positive_flip_rate)
        )
        return negative, positive


def _percent(metrics: RetrievalPerQuery) -> tuple[float, float, float]:
    ranks = metrics.first_match_ranks
    hits = [100 * float((ranks < k).mean()) for k in (1, 5)]
    return hits[0], hits[1], 100 * float(np.nanmean(metrics.average_precisions))


class Galleries:
    """Galleries of the test images of some classes, all unless said otherwise, judged once each. `like` names an
    encoder: the images are of the size that it takes."""

    def __init__(self, features: Features, classes: Sequence[int] | None = None, like: str = "new") -> None:
        self._features = features
        labels = features.labels("test", like).numpy()
        self._rows = np.arange(len(labels)) if classes is None else np.flatnonzero(np.isin(labels, classes))
        self.labels = labels[self._rows]
        self._judged: dict[tuple[bytes, bytes], tuple[RetrievalPerQuery, NDArray[np.int64]]] = {}

    def vectors(self, name: str) -> Vectors:
        """Return what an encoder gives of the images: (N, D)."""
        return self._features.test(name)[self._rows]

    def second_views(self, name: str) -> Vectors:
        """Return what an encoder gives of a second view of each image: (N, D)."""
        return self._features.second_view(name)[self._rows]

    def parts(self, known: Iterable[int]) -> Parts:
        """Return all queries, those of some classes, and those of the others."""
        chosen = np.isin(self.labels, list(known))
        return {"all": np.ones(len(self.labels), bool), "known": chosen, "not known": ~chosen}

    def judge(self, query: Vectors, gallery: Vectors) -> tuple[RetrievalPerQuery, NDArray[np.int64]]:
        """Return how the images (N, D) are found in a gallery (N, D) of the same, by class and by item."""
        key = (_digest(query), _digest(gallery))
        if key not in self._judged:
            by_class = query_metrics(query, self.labels, gallery, self.labels, self_match=True)
            self._judged[key] = by_class, own_item_ranks(query, gallery)
        return self._judged[key]

    def judged(self, galleries: Iterable[tuple[Vectors, Vectors]]) -> Judged:
        """Judge (query, gallery) of each seed."""
        found = [self.judge(query, gallery) for query, gallery in galleries]
        return Judged(tuple(by_class for by_class, _ in found), tuple(ranks for _, ranks in found))

    def direct(self, query: str, gallery: str) -> Judged:
        """Judge encoders as they are."""
        return self.judged([(self.vectors(query), self.vectors(gallery))])

    def gallery(self, spec: Spec) -> Vectors:
        """Return the images' embeddings by h: (N, D)."""
        side = None if spec.side is None else self.vectors(spec.side)
        return self.transformed(spec, self.vectors(spec.old), side)

    def transformed(self, spec: Spec, embedding: Vectors, side_information: Vectors | None) -> Vectors:
        """Return what h gives of what the encoders gave: (N, D_from), (N, S) -> (N, D_to)."""
        old = torch.from_numpy(embedding)
        side = None if side_information is None else torch.from_numpy(side_information)
        variant = VARIANTS[spec.variant]
        if side is not None and variant.side_levels is not None:
            side = as_levels(side, variant.side_levels)
        output = apply(load(self._features, spec), old, side)
        if variant.target == "residual":
            output = output + apply(linear_map(self._features, spec), old, side)
        gallery = output.numpy()
        return l2_normalize(gallery) if "arcface" in spec.new else gallery  # as what it stands in for

    def of_seeds(self, spec: Spec, seeds: Sequence[int] = SEEDS) -> list[Vectors]:
        """Return the embeddings by h of each seed."""
        return [self.gallery(replace(spec, seed=seed)) for seed in seeds]


def _digest(vectors: Vectors) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(vectors).data).digest()


def own_item_ranks(query: Vectors, gallery: Vectors) -> NDArray[np.int64]:
    """Return (N,) int64, how many items are nearer to query i than item i is."""
    numbers = np.arange(len(query))
    return first_match_ranks(query, numbers, gallery, numbers)


@dataclass
class Table:
    """The rows of an upgrade from `old` to `new`, and which of them are compared: "what, against what": (before,
    after). With `parts`, each row is there for each part of the queries."""

    galleries: Galleries
    old: str = "old"
    new: str = "new"
    parts: Parts | None = None
    rows: dict[str, Judged] = field(default_factory=dict)
    compared: dict[str, tuple[Judged, Judged]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows["old/old"] = self.galleries.direct(self.old, self.old)

    def add_recipes(
        self, spec: Spec, recipes: Sequence[str] = RECIPES, what: str = "", seeds: Sequence[int] = SEEDS
    ) -> None:
        """Add new/h and h/h by each recipe, and compare each with the first recipe, and that with old/old."""
        made = {recipe: self.galleries.of_seeds(replace(spec, variant=recipe), seeds) for recipe in recipes}
        self.add({f"{what}{recipe}": galleries for recipe, galleries in made.items()})

    def add(self, made: Mapping[str, Sequence[Vectors]]) -> None:
        """Add new/h and h/h of galleries, one of each seed by each way, and compare each way with the first, and that
        with old/old."""
        query = self.galleries.vectors(self.new)
        first = next(iter(made))
        for what, galleries in made.items():
            self.rows[f"new/h, {what}"] = self.galleries.judged((query, gallery) for gallery in galleries)
            self.rows[f"h/h, {what}"] = self.galleries.judged((gallery, gallery) for gallery in galleries)
            against = "old/old" if what == first else f"new/h, {first}"
            self.compared[f"new/h, {what}, against {against}"] = (self.rows[against], self.rows[f"new/h, {what}"])

    def text(self) -> str:
        """Return the rows, with new/new as the last, and the differences."""
        old, new = self.rows["old/old"], self.galleries.direct(self.new, self.new)
        rows = {**self.rows, "new/new": new}
        columns = ["CMC@1", "CMC@5", "mAP", "G CMC@1", "G CMC@5", "G mAP", "own item first", "negative flips"]
        text = head("query/gallery", *self._queries(), *columns, "positive flips")
        for part, chosen in self._parts():
            for name, judged in rows.items():
                label = [name] if part is None else [name, part]
                cells = _cells(judged.of(chosen), old.of(chosen), new.of(chosen))
                text += line(*label, *cells)
        return f"{text}\n{self._differences()}"

    def _differences(self) -> str:
        """Paired differences, with 95 % intervals over queries drawn by whole classes."""
        text = head("difference", *self._queries(), "CMC@1", "CMC@5", "mAP", "own item first")
        for name, (before, after) in self.compared.items():
            for part, chosen in self._parts():
                label = [name] if part is None else [name, part]
                pairs = zip(before.of(chosen).scores(), after.of(chosen).scores(), strict=True)
                text += line(*label, *(interval(*pair, self.galleries.labels[chosen]) for pair in pairs))
        return text

    def _queries(self) -> list[str]:
        return [] if self.parts is None else ["queries"]

    def _parts(self) -> list[tuple[str | None, NDArray[np.bool_]]]:
        if self.parts is None:
            return [(None, np.ones(len(self.galleries.labels), bool))]
        return list(self.parts.items())


def _cells(judged: Judged, old: Judged, new: Judged) -> list[str]:
    values, low, high = judged.values(), old.values(), new.values()
    closed = shares_closed(values, low, high)
    lost, gained = judged.flips(old)
    return [
        *(cell(column) for column in values.T),
        *(cell(column, 1) for column in closed.T),
        cell(judged.own_item_found()),
        f"{lost:.1f}",
        f"{gained:.1f}",
    ]


def shares_closed(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return G in percent; NaN where there is no gap."""
    with np.errstate(divide="ignore", invalid="ignore"):
        closed: NDArray[np.float64] = np.where(high == low, np.nan, 100 * (values - low) / (high - low))
    return closed


def interval(before: NDArray[np.float64], after: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
    """Return the difference of (Q,) scores and its interval, in percent; the queries are drawn by whole classes."""
    found = paired_bootstrap(before, after, resamples=_RESAMPLES, clusters=labels)
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def cell(values: NDArray[np.float64], digits: int = 2) -> str:
    """Return the mean, and the standard deviation where there are several seeds."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def head(*columns: str) -> str:
    return line(*columns) + line(*["---"] * len(columns)).replace(" ", "")


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"
