"""Recall: the share of the true nearest rows that an index finds, and the width of search that is chosen by it.

The questions are a sample of the queries that the index gets, where there is one: how far they are from the rows
decides how wide a search must be. Else they are rows of the index. A row finds itself at distance 0 in almost any
index, so it is left out of its own answer and of its true neighbours: what is measured is how well *other* rows are
found. Rows are the weaker questions: in a gallery of near copies they are found at any width, and queries are not.
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


@dataclass(frozen=True)
class Recall:
    """The recall@10 that an index was measured to have, and of how many vectors of which kind the sample was."""

    recall_at_10: float
    recall_sample: Literal["queries", "rows"]
    recall_sample_size: int


@dataclass(frozen=True)
class Sample:
    """What to ask: ids (Q,), vectors (Q, D) float32.

    Where a vector is a row, `ids` has the row's id, and the row is left out of its answer. Where it is a query, `ids`
    has `NO_ID`, and nothing is left out.
    """

    ids: Ids
    vectors: Vectors

    @classmethod
    def of_queries(cls, vectors: Vectors) -> "Sample":
        return cls(np.full(len(vectors), NO_ID, np.int64), vectors)

    @property
    def is_of_queries(self) -> bool:
        return len(self.ids) > 0 and bool((self.ids == NO_ID).all())

    def describe(self, recall_at_10: float) -> Recall:
        return Recall(recall_at_10, "queries" if self.is_of_queries else "rows", len(self.ids))


def choose_width(
    built: BuiltIndex, metric: Metric, sample: Sample, rows: Iterable[tuple[Ids, Vectors]], k: int = 10
) -> float:
    """Give the index the narrowest width with 0.995 of the best recall, and return its recall@k on the sample.

    The best is almost 1, except for what 8-bit codes lose. `rows` are all that the index holds, read once. Every width
    is tried through `FaissIndex`, as it will be searched.
    """
    index = FaissIndex(metric, sample.vectors.shape[1], built)
    approximate = built.rows
    if not isinstance(approximate, ApproximateRows):
        return measure_recall(metric, sample, [find_others(index, sample, k)], rows)[0]
    answers = []
    for width in approximate.widths:
        approximate.width = width
        answers.append(find_others(index, sample, k))
    recalls = measure_recall(metric, sample, answers, rows)
    chosen = next(place for place, recall in enumerate(recalls) if recall >= _SHARE_OF_BEST * max(recalls))
    approximate.width = approximate.widths[chosen]
    return recalls[chosen]


def find_others(index: VectorIndex, sample: Sample, k: int = 10) -> Ids:
    """Return (Q, k) ids: what the index finds for each vector of the sample, apart from the row that it is."""
    if sample.is_of_queries:
        return index.search(sample.vectors, k).ids
    found = index.search(sample.vectors, k + 1).ids
    others = np.argsort(found == sample.ids[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, others, axis=1)


def measure_recall(
    metric: Metric, sample: Sample, answers: Sequence[Ids], rows: Iterable[tuple[Ids, Vectors]]
) -> list[float]:
    """Return each answer's recall: the share of the true k nearest other rows that its (Q, k) ids have.

    `rows` are all that could be found, in chunks. What counts is the distance: of ten copies of one image, any is as
    good as another. 1 where there is nothing to find.
    """
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
    neighbours = np.isfinite(true).sum()
    if neighbours == 0:
        return [1.0] * len(answers)
    return [float(part.sum() / neighbours) for part in np.split(hits, len(answers), axis=1)]


def _places(block_ids: Ids, wanted: Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where in (N,) ids each of the wanted (Q, K) is, and whether it is."""
    order = np.argsort(block_ids)
    columns = order[np.minimum(np.searchsorted(block_ids, wanted, sorter=order), len(order) - 1)]
    return columns, block_ids[columns] == wanted
