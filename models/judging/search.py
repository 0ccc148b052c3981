"""The exact nearest items of many queries in a gallery that is read once, in chunks: memory does not grow with it.

Most of the work is a bound in float32 from below on every distance, one product of matrices per block. Only what could
be nearer than the kth found so far is computed exactly, by differences in float64, so the answer depends neither on the
chunks nor on the threads. Distances mean what `service.index.protocol.SearchResult` says: Euclidean for l2, 1 - cosine,
negative inner product; equal ones are ordered by id. Q queries, N items of a chunk, R of them in a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.metrics import Metric, Vectors, spread

Ids = NDArray[np.int64]
AnyVectors = NDArray[np.float16] | NDArray[np.float32]
Chunks = Iterable[tuple[Ids, AnyVectors]]
NO_ID = -1
_ROWS, _QUERIES, _GROUP = 1024, 512, 64  # a block of float32 fits the cache of a core
_FEW = 4  # groups per query that have a candidate: with more, the block's own k nearest are the better limit
_EXACT_AT_ONCE = 2048
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Neighbours:
    """ids: (Q, k) int64, padded with `NO_ID`; distances: (Q, k) float32, padded with +inf; nearest first."""

    ids: Ids
    distances: Vectors

    def rows(self, count: int) -> "Neighbours":
        """Return those of the first queries."""
        return Neighbours(self.ids[:count], self.distances[:count])


class NearestItems:
    """What is nearest to each of (Q, D) float32 queries among what was added; `leave_out` (Q,) is an id per query that
    it does not find, its own item, or `NO_ID`. Items with values that are not finite are found by none.

    Raises ValueError for queries that are not finite.
    """

    def __init__(self, queries: Vectors, k: int, metric: Metric, leave_out: Ids | None = None) -> None:
        if not np.isfinite(queries).all():
            raise ValueError("The queries have values that are not finite.")
        self._queries, self._k, self._metric = queries, k, metric
        self._leave_out = np.full(len(queries), NO_ID, np.int64) if leave_out is None else leave_out
        self._error = (queries.shape[1] + 16) * 2.0**-23  # twice what a product of float32 loses, of |q|² + |v|²
        factor = _unit(queries) if metric == "cosine" else queries
        self._factor = torch.from_numpy(np.ascontiguousarray(factor, np.float32))
        self._squares: NDArray[np.float64] = np.square(factor, dtype=np.float64).sum(axis=1)
        self._limits = torch.full((len(queries),), _LARGEST)  # up to which bound an item can be nearer than the kth
        self._ids = np.full((len(queries), k), NO_ID, np.int64)
        self._distances = np.full((len(queries), k), np.inf, np.float32)

    def add(self, ids: Ids, vectors: AnyVectors) -> None:
        """Compare (N,) ids with (N, D) vectors, each id added once; as many threads as torch would use share the
        queries."""
        rows = np.flatnonzero(_among_smallest_copies(ids, vectors, self._k + 1))
        with np.errstate(over="ignore"):
            squares = np.square(vectors[rows], dtype=np.float32).sum(axis=1)
        rows = rows[np.isfinite(squares)]
        ids, kept = ids[rows], np.asarray(vectors[rows], np.float32)
        factor = torch.from_numpy(_unit(kept) if self._metric == "cosine" else kept)
        offsets = self._offsets(factor)
        blocks = [np.arange(start, min(start + _QUERIES, len(self._queries))) for start in self._starts()]

        def compare(blocks: list[Ids]) -> None:
            room = torch.empty(_ROWS * _QUERIES)
            for queries in blocks:
                asked, near = [], []  # what may be among the nearest, and is yet to be compared exactly
                for start in range(0, len(ids), _ROWS):
                    part = slice(start, start + _ROWS)
                    bounds = self._bounds(factor[part], offsets[part], queries, room)
                    columns, found = self._candidates(queries, bounds, kept[part])
                    asked.append(queries[columns])
                    near.append(start + found)
                    if sum(map(len, near)) >= _EXACT_AT_ONCE or part.stop >= len(ids):
                        self._take(np.concatenate(asked), ids, kept, np.concatenate(near))
                        asked, near = [], []

        spread(compare, blocks, "cpu")

    def found(self) -> Neighbours:
        return Neighbours(self._ids.copy(), self._distances.copy())

    def _starts(self) -> range:
        return range(0, len(self._queries), _QUERIES)

    def _offsets(self, items: Tensor) -> Tensor:
        """(N, D) -> (N, 1) float32, what an item adds to the bound on its distance from any query."""
        squares: Tensor = items.square().sum(dim=1, keepdim=True)
        squares *= 1 - self._error if self._metric == "l2" else -self._error
        return squares

    def _bounds(self, items: Tensor, offsets: Tensor, queries: Ids, room: Tensor) -> Tensor:
        """(R, D), (R, 1), (q,) -> (R, q) float32 in `room`: not above the squared distance less |q|², or the distance,
        for cosine less 1, by more than the query's own share of the rounding."""
        factor = self._factor[queries[0] : queries[-1] + 1]
        bounds: Tensor = room[: len(items) * len(queries)].view(len(items), len(queries))
        scale = -2 if self._metric == "l2" else -1
        torch.addmm(offsets, items, factor.T, alpha=scale, out=bounds)
        return bounds

    def _limits_of(self, queries: Ids) -> Tensor:
        """(q,) -> (q,) float32, up to which bound an item can still be nearer than the kth."""
        furthest = self._distances[queries, -1].astype(np.float64)
        squares = self._squares[queries]
        scores = {"l2": np.square(furthest) * (1 + 2.0**-22) - squares, "cosine": furthest - 1, "ip": furthest}
        return _float32_above(np.minimum(scores[self._metric] + self._error * squares, _LARGEST))

    def _candidates(self, queries: Ids, bounds: Tensor, vectors: Vectors) -> tuple[Ids, Ids]:
        """(q,), (R, q), (R, D) -> (P,) columns and (P,) rows of the pairs that may be nearer than what was found."""
        limits = self._limits[queries[0] : queries[-1] + 1]
        least = bounds[: len(bounds) // _GROUP * _GROUP].view(-1, _GROUP, len(queries)).amin(dim=1)
        near = least <= limits
        if len(bounds) > self._k + 1 and int(near.count_nonzero()) > _FEW * len(queries):
            limits = limits.minimum(self._limits_of_block(queries, bounds, vectors))
            near = least <= limits
        return _at_most(bounds, near, limits)

    def _limits_of_block(self, queries: Ids, bounds: Tensor, vectors: Vectors) -> Tensor:
        """(q,) float32, up to which bound an item can be among the k nearest of the block, one item left out."""
        kth: NDArray[np.float64] = bounds.topk(self._k + 1, dim=0, largest=False).values[-1].numpy().astype(np.float64)
        largest = 1.0 if self._metric == "cosine" else float(np.square(vectors, dtype=np.float64).sum(axis=1).max())
        return _float32_above(kth + 4 * self._error * (self._squares[queries] + largest))

    def _take(self, queries: Ids, ids: Ids, vectors: Vectors, rows: Ids) -> None:
        """Compare (P,) queries with (P,) rows of (N,) ids and (N, D) vectors, and keep what is nearer."""
        other = ids[rows] != self._leave_out[queries]
        queries, rows = queries[other], rows[other]
        for start in range(0, len(rows), _EXACT_AT_ONCE):
            part = slice(start, start + _EXACT_AT_ONCE)
            distances = exact_distances(self._queries[queries[part]], vectors[rows[part]], self._metric)
            self._insert(queries[part], ids[rows[part]], distances)

    def _insert(self, queries: Ids, ids: Ids, distances: Vectors) -> None:
        """Take (P,) items into the answers of the queries that they were compared with."""
        asked, place = np.unique(queries, return_inverse=True)
        groups = np.concatenate([np.repeat(np.arange(len(asked)), self._k), place])
        all_ids = np.concatenate([self._ids[asked].ravel(), ids])
        all_distances = np.concatenate([self._distances[asked].ravel(), distances])
        order = np.lexsort((all_ids, all_distances, groups))
        groups = groups[order]
        starts = np.searchsorted(groups, np.arange(len(asked)))
        best = order[starts[:, None] + np.arange(self._k)]  # (asked, k): each has its k old ones at least
        self._ids[asked], self._distances[asked] = all_ids[best], all_distances[best]
        self._limits[asked] = self._limits_of(asked)


def nearest_items(queries: Vectors, chunks: Chunks, k: int, metric: Metric, leave_out: Ids | None = None) -> Neighbours:
    """Return the k nearest of each of (Q, D) queries among all items of the chunks. Raises as `NearestItems` does."""
    search = NearestItems(queries, k, metric, leave_out)
    for ids, vectors in chunks:
        search.add(ids, vectors)
    return search.found()


def exact_distances(queries: Vectors, items: Vectors, metric: Metric) -> Vectors:
    """Return (P,) float32 distances of (P, D) queries from (P, D) items, row by row, computed in float64."""
    first, second = queries.astype(np.float64), items.astype(np.float64)
    if metric == "l2":
        euclidean: Vectors = np.sqrt(np.square(first - second).sum(axis=1)).astype(np.float32)
        return euclidean
    products: NDArray[np.float64] = (first * second).sum(axis=1)
    if metric == "ip":
        return (-products).astype(np.float32)
    norms = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    distances: Vectors = np.clip(1 - products / np.where(norms == 0, 1, norms), 0, 2).astype(np.float32)
    return distances


def fingerprints(vectors: AnyVectors) -> NDArray[np.uint64]:
    """Return (N,) numbers of (N, D) rows: equal for equal bits, else almost surely different (a multilinear hash of
    words whose halves are mixed)."""
    octets = np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), vectors[:1].nbytes)
    octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    words = octets.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(32)
    weights = np.random.default_rng(0).integers(0, 2**63, words.shape[1], np.uint64) * 2 + 1
    hashes: NDArray[np.uint64] = (words * weights).sum(axis=1, dtype=np.uint64)
    return hashes


def _among_smallest_copies(ids: Ids, vectors: AnyVectors, count: int) -> NDArray[np.bool_]:
    """Return (N,) bool: of rows that are equal, the `count` with the smallest ids. No answer needs more of them, and a
    gallery of thousands of equal rows is no slower than another."""
    prints = fingerprints(vectors)
    order = np.lexsort((ids, prints))
    ordered = prints[order]
    starts = np.searchsorted(ordered, ordered)
    wanted = np.empty(len(ids), bool)
    wanted[order] = np.arange(len(ids)) - starts < count
    return wanted


def _unit(vectors: Vectors) -> Vectors:
    norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    unit: Vectors = (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
    return unit


def _float32_above(limits: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(limits.astype(np.float32)).nextafter(torch.tensor(_LARGEST))


def _at_most(bounds: Tensor, near: Tensor, limits: Tensor) -> tuple[Ids, Ids]:
    """Return the (P,) columns and (P,) rows of (R, q) bounds that are at most their column's (q,) limit.

    near: (G, q) whether a group of rows has one. Most groups have none, and a column's rows are gathered only where its
    group has one.
    """
    columns = bounds.shape[1]
    whole = len(near) * _GROUP
    grouped = bounds[:whole].view(-1, _GROUP, columns)
    group, column = near.nonzero(as_tuple=True)
    hit, place = (grouped[group, :, column] <= limits[column, None]).nonzero(as_tuple=True)
    rest_row, rest_column = (bounds[whole:] <= limits).nonzero(as_tuple=True)
    found_columns = torch.cat([column[hit], rest_column])
    found_rows = torch.cat([group[hit] * _GROUP + place, rest_row + whole])
    return found_columns.numpy(), found_rows.numpy()
