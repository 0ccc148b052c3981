"""What an index is. Smaller distance is closer whatever the metric; ids are the items' keys, never positions."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Metric = Literal["l2", "cosine", "ip"]
IndexKind = Literal["flat", "hnsw", "ivf", "ivf_sq8"]  # `service.index.kinds`
IndexOption = Literal["auto", IndexKind]  # what a gallery asks for; auto follows from its number of rows
Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

NO_ID = -1
_CANCELLED_SHARE = 0.01  # above it, |q|² - 2qv + |v|² keeps about five digits in float32


class IndexAway(RuntimeError):
    """The server that holds the index does not answer, or refuses."""


class IndexGone(LookupError):
    """The index was dropped from the server that held it."""


@dataclass(frozen=True)
class SearchResult:
    """ids (Q, k) int64, padded with -1, and distances (Q, k) float32, padded with +inf; nearest first.

    Distances are pgvector's: Euclidean for l2, 1 - cosine similarity, negative inner product for ip. `is_exact` when
    every row that may be found was compared with every query, by its codes, which some kinds of index round to float16
    or 8 bits. It is false when a graph was walked, or lists were left out, for any of the queries.
    """

    ids: Ids
    distances: Vectors
    is_exact: bool = True


class VectorIndex(Protocol):
    """Searching while adding is safe: an implementation locks for itself."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (N,) ids with (N, D) vectors; an id that is there already is replaced."""

    def remove(self, ids: Ids) -> None:
        """Remove (N,) ids; unknown ones are ignored."""

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None, *, exact: bool = False) -> SearchResult:
        """Return the k nearest of each of (Q, D) queries, among `allowed` ids only when given; with `exact` after
        comparing every row that may be found, where the index can: the result says whether it did."""

    def ids(self) -> Ids:
        """Return every id, ascending."""

    def __len__(self) -> int: ...


def normalized(vectors: Vectors) -> Vectors:
    """Return (N, D) vectors scaled to unit norm; a zero vector stays zero, at cosine distance 1 from everything.

    For indexes alone. What is encoded or transformed under a version that normalises has unit norm when it is stored;
    vectors that are imported are stored as they came.
    """
    # Summed in float64: a float32 value above 1e19 would make its square, and so the norm, infinite.
    norms: Vectors = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)).astype(np.float32)
    return (vectors / np.where(norms == 0, 1, norms)[:, None]).astype(np.float32)


def exact_distances(metric: Metric, queries: Vectors, vectors: Vectors) -> Vectors:
    """Return (Q, N) distances; for cosine both sides are normalised already."""
    products: Vectors = queries @ vectors.T
    if metric == "l2":
        return _euclidean(products, queries, vectors)
    return from_faiss(metric, products)


def _euclidean(products: Vectors, queries: Vectors, vectors: Vectors) -> Vectors:
    """Return (Q, N) distances from (Q, N) inner products, by |q|² - 2qv + |v|².

    Where the result is small beside the norms, rounding would hide it: those pairs are subtracted from each other.
    """
    squared = products
    norms: Vectors = np.einsum("qd,qd->q", queries, queries)[:, None] + np.einsum("nd,nd->n", vectors, vectors)
    squared *= -2
    squared += norms
    cancelled = squared < _CANCELLED_SHARE * norms
    for row in np.flatnonzero(cancelled.any(axis=1)):
        columns = np.flatnonzero(cancelled[row])
        differences = vectors[columns] - queries[row]
        squared[row, columns] = np.einsum("nd,nd->n", differences, differences)
    return np.sqrt(squared, out=squared)


def from_faiss(metric: Metric, scores: Vectors) -> Vectors:
    """Return distances from FAISS's scores: squared L2 distances, or inner products, of which larger is closer."""
    if metric == "cosine":
        return np.clip(1 - scores, 0, 2)  # rounding can leave the range; pgvector clips too
    if metric == "ip":
        return -scores
    distances: Vectors = np.sqrt(np.maximum(scores, 0))
    return distances


def nearest(ids: Ids, distances: Vectors, k: int) -> SearchResult:
    """Return the k nearest columns of (Q, N) `distances`; `ids` is (N,) or (Q, N). Ties go to the smaller id."""
    queries, count = distances.shape
    ids = np.broadcast_to(ids, distances.shape)
    found = np.full((queries, k), NO_ID, np.int64)
    nearest_distances = np.full((queries, k), np.inf, np.float32)

    if count <= 4 * k:
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        found[:, : order.shape[1]] = np.take_along_axis(ids, order, axis=1)
        nearest_distances[:, : order.shape[1]] = np.take_along_axis(distances, order, axis=1)
    else:
        for row in range(queries):
            kth = np.partition(distances[row], k - 1)[k - 1]
            columns = np.flatnonzero(distances[row] <= kth)  # every tie at the border takes part
            order = columns[np.lexsort((ids[row, columns], distances[row, columns]))][:k]
            found[row, : len(order)] = ids[row, order]
            nearest_distances[row, : len(order)] = distances[row, order]

    missing = ~np.isfinite(nearest_distances)  # also where a float32 overflowed
    found[missing], nearest_distances[missing] = NO_ID, np.inf
    return SearchResult(found, nearest_distances)


def no_rows(queries: Vectors) -> SearchResult:
    """Return what a search of nothing finds: (Q, 0), to be merged with."""
    return SearchResult(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
