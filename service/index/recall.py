"""Recall: the share of the true nearest rows that an index finds, and the width of search that is chosen by it.

The questions are a sample of the queries that the index gets, where there is one: how far they are from the rows
decides how wide a search must be. Else they are rows of the index, and points between rows. A row finds itself at
distance 0 in almost any index, so it is left out of its own answer and of its true neighbours: what is measured is how
well *other* rows are found. Rows alone are weak questions: near copies of each other are found at any width, and what
a walk from elsewhere meets on its way to them is not seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.index.faiss_index import FaissIndex
from service.index.kinds import ApproximateRows, BuiltIndex
from service.index.protocol import NO_ID, Ids, Metric, VectorIndex, Vectors, exact_distances, nearest, normalized

_SHARE_OF_BEST = 0.995  # of a sample, where 0.99 is wanted of all queries
_TIE_SHARE = 1e-5  # distances this close, relatively, differ by float32's rounding alone
_BETWEEN = 0.4  # of the way from one row to another
_CROWDS = 10  # groups of copies that points lie towards
_SEED = 0  # so that the same rows have the same points between them

SampleKind = Literal["queries", "rows", "between"]


@dataclass(frozen=True)
class Recall:
    """The recall@10 that an index was measured to have: `recalls` by each kind of question. The lowest of them is
    `recall_at_10`, by questions of the kind `recall_sample`, of which there were `recall_sample_size`."""

    recall_at_10: float
    recall_sample: SampleKind
    recall_sample_size: int
    recalls: dict[SampleKind, float]


@dataclass(frozen=True)
class Sample:
    """What to ask: ids (Q,), vectors (Q, D) float32.

    Where a vector is a row, `ids` has the row's id, and the row is left out of its answer. Where it is a query, `ids`
    has `NO_ID`, and nothing is left out. So it is for the last `between`, which are points between rows.
    """

    ids: Ids
    vectors: Vectors
    between: int = 0

    @classmethod
    def of_queries(cls, vectors: Vectors) -> "Sample":
        return cls(np.full(len(vectors), NO_ID, np.int64), vectors)

    @property
    def is_of_queries(self) -> bool:
        return len(self.ids) > self.between and bool((self.ids == NO_ID).all())

    @property
    def parts(self) -> dict[SampleKind, slice]:
        """Where the questions of each kind are."""
        given = len(self.ids) - self.between
        parts: dict[SampleKind, slice] = {"queries" if self.is_of_queries else "rows": slice(0, given)}
        if self.between:
            parts["between"] = slice(given, None)
        return parts

    def with_points_between(self, metric: Metric, crowds: Vectors) -> "Sample":
        """Return a sample of rows with as many points between them; of queries, or of fewer than two rows, as it is.

        A point is 0.4 of the way from a row to another one, or every second to one of the (G, D) float32 `crowds`, the
        vectors that most rows have, where there are any.
        """
        count = len(self.ids)
        if self.is_of_queries or self.between or count < 2:
            return self
        rows = normalized(self.vectors) if metric == "cosine" else self.vectors
        order = np.random.default_rng(_SEED).permutation(count)
        towards = rows[np.roll(order, 1)]
        if len(crowds):
            towards[::2] = crowds[np.arange(len(towards[::2])) % len(crowds)]
        points = rows[order] + np.float32(_BETWEEN) * (towards - rows[order])
        ids = np.append(self.ids, np.full(count, NO_ID, np.int64))
        return Sample(ids, np.concatenate([self.vectors, points]), between=count)

    def describe(self, hits: NDArray[np.int64], neighbours: NDArray[np.int64]) -> Recall:
        """Return the recall of (Q,) hits of (Q,) true neighbours."""
        recalls = {kind: _share(hits[part], neighbours[part]) for kind, part in self.parts.items()}
        lowest = min(recalls, key=recalls.__getitem__)
        return Recall(recalls[lowest], lowest, len(self.ids[self.parts[lowest]]), recalls)


def choose_width(
    built: BuiltIndex, metric: Metric, sample: Sample, rows: Iterable[tuple[Ids, Vectors]], k: int = 10
) -> Recall:
    """Give the index the narrowest width at which each kind of question has 0.995 of its best recall, and return its
    recall@k. A sample of rows is asked with points between them, also towards the largest groups of copies.

    The best is almost 1, except for what 8-bit codes lose. `rows` are all that the index holds, read once. Every width
    is tried through `FaissIndex`, as it will be searched.
    """
    sample = sample.with_points_between(metric, built.vectors(built.copies.largest(_CROWDS, k)))
    index = FaissIndex(metric, sample.vectors.shape[1], built)
    approximate = built.rows
    if not isinstance(approximate, ApproximateRows):
        return recall_of(metric, sample, find_others(index, sample, k), rows)
    answers = []
    for width in approximate.widths:
        approximate.width = width
        answers.append(find_others(index, sample, k))
    hits, neighbours = _count_hits(metric, sample, answers, rows)
    shares = np.array([[_share(one[part], neighbours[part]) for part in sample.parts.values()] for one in hits])
    is_enough = (shares >= _SHARE_OF_BEST * shares.max(axis=0)).all(axis=1)
    chosen = int(np.argmax(is_enough)) if is_enough.any() else len(answers) - 1
    approximate.width = approximate.widths[chosen]
    return sample.describe(hits[chosen], neighbours)


def find_others(index: VectorIndex, sample: Sample, k: int = 10) -> Ids:
    """Return (Q, k) ids: what the index finds for each vector of the sample, apart from the row that it is."""
    if sample.is_of_queries:
        return index.search(sample.vectors, k).ids
    found = index.search(sample.vectors, k + 1).ids
    others = np.argsort(found == sample.ids[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, others, axis=1)


def recall_of(metric: Metric, sample: Sample, answer: Ids, rows: Iterable[tuple[Ids, Vectors]]) -> Recall:
    """Return the recall by each kind of question: the share of the true k nearest other rows that (Q, k) ids have.

    `rows` are all that could be found, in chunks. What counts is the distance: of ten copies of one image, any is as
    good as another. 1 where there is nothing to find.
    """
    hits, neighbours = _count_hits(metric, sample, [answer], rows)
    return sample.describe(hits[0], neighbours)


def _count_hits(
    metric: Metric, sample: Sample, answers: Sequence[Ids], rows: Iterable[tuple[Ids, Vectors]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many of each question's true neighbours each answer has, (A, Q), and how many there are, (Q,)."""
    queries = normalized(sample.vectors) if metric == "cosine" else sample.vectors
    k = answers[0].shape[1]

    found = np.hstack(answers)
    found_distances = np.full(found.shape, np.inf, np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    true = np.empty((len(queries), 0), np.float32)

    for block_ids, vectors in rows:
        if len(block_ids) == 0:
            continue
        block = exact_distances(metric, queries, normalized(vectors) if metric == "cosine" else vectors)
        columns, here = _places(block_ids, found)
        found_distances[here] = np.take_along_axis(block, columns, axis=1)[here]
        columns, here = _places(block_ids, sample.ids[:, None])
        block[np.flatnonzero(here), columns[here]] = np.inf
        best = nearest(np.hstack([ids, np.broadcast_to(block_ids, block.shape)]), np.hstack([true, block]), k)
        ids, true = best.ids, best.distances

    found_distances[found == sample.ids[:, None]] = np.inf
    last = np.max(true, axis=1, where=np.isfinite(true), initial=np.finfo(np.float32).min)[:, None]
    hits = np.isfinite(found_distances) & (found_distances <= last + _TIE_SHARE * np.abs(last))
    return hits.reshape(len(queries), len(answers), k).sum(axis=2).T, np.isfinite(true).sum(axis=1)


def _share(hits: NDArray[np.int64], neighbours: NDArray[np.int64]) -> float:
    return float(hits.sum() / neighbours.sum()) if neighbours.any() else 1.0


def _places(block_ids: Ids, wanted: Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where in (N,) ids each of the wanted (Q, K) is, and whether it is."""
    order = np.argsort(block_ids)
    columns = order[np.minimum(np.searchsorted(block_ids, wanted, sorter=order), len(order) - 1)]
    return columns, block_ids[columns] == wanted
