"""`FaissIndex`: a sealed FAISS index, a small exact tail, and tombstones, under one reader-writer lock.

The sealed part never changes. A row that is replaced or removed is put among the tombstones, which searches of the
sealed part leave out; a new row goes to the tail.
"""

from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np

from service.index.locks import ReadWriteLock
from service.index.protocol import (
    NO_ID,
    Ids,
    Metric,
    SearchResult,
    Vectors,
    exact_distances,
    from_faiss,
    nearest,
    normalized,
)
from service.index.tail import Tail

# Below this share of allowed rows an approximate index loses them, and scoring exactly those rows is faster anyway.
_EXACT_SHARE = 0.15
_EXACT_ROWS = 2_000
_EF_SEARCH = 64
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class BuiltIndex:
    """A sealed FAISS index (an IDMap2) with what it is and how long it took; see `service.index.files`."""

    index: Any
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class FaissIndex:
    """`service.index.protocol.VectorIndex`; vectors have `dim` numbers."""

    def __init__(self, metric: Metric, dim: int, sealed: BuiltIndex | None = None) -> None:
        self._metric = metric
        self._dim = dim
        self._sealed = sealed.index if sealed is not None else None
        self._approximate = sealed is not None and sealed.kind != "flat"
        stored = faiss.vector_to_array(self._sealed.id_map) if self._sealed is not None else np.empty(0, np.int64)
        self._sealed_ids: Ids = np.sort(stored)
        self._tombstones: set[int] = set()
        self._dead: Ids = np.empty(0, np.int64)
        self._tail = Tail(metric, dim)
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self._sealed_ids) - len(self._tombstones) + len(self._tail)

    @property
    def tail_size(self) -> int:
        """How many rows are searched exhaustively; its owner may rebuild when this is large."""
        return len(self._tail)

    def ids(self) -> Ids:
        """Return every id, ascending."""
        with self._lock.reading():
            return np.sort(np.concatenate([np.setdiff1d(self._sealed_ids, self._dead), self._tail.ids()]))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (N,) ids with (N, D) float32 vectors; an id that is there already is replaced."""
        if self._metric == "cosine":
            vectors = normalized(vectors)
        with self._lock.writing():
            self._bury(ids)
            self._tail.put(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove (N,) ids; unknown ones are ignored."""
        with self._lock.writing():
            self._bury(ids)
            self._tail.drop(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> SearchResult:
        """Return the k nearest of each of (Q, D) float32 queries, among `allowed` ids only when given."""
        if self._metric == "cosine":
            queries = normalized(queries)
        queries = np.ascontiguousarray(queries, np.float32)
        with self._lock.reading():
            sealed = self._search_sealed(queries, k, allowed)
            tail = self._tail.search(queries, k, allowed)
        return nearest(np.hstack([sealed.ids, tail.ids]), np.hstack([sealed.distances, tail.distances]), k)

    def _bury(self, ids: Ids) -> None:
        sealed = np.intersect1d(ids, self._sealed_ids)
        if len(sealed):
            self._tombstones.update(sealed.tolist())
            self._dead = np.array(sorted(self._tombstones), np.int64)

    def _search_sealed(self, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        live = len(self._sealed_ids) - len(self._tombstones)
        if allowed is not None:
            allowed = np.setdiff1d(np.intersect1d(allowed, self._sealed_ids), self._dead)
            live = len(allowed)
        if live == 0:
            return SearchResult(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
        if allowed is not None and live <= max(_EXACT_ROWS, _EXACT_SHARE * len(self._sealed_ids)):
            return self._search_exactly(queries, k, allowed)
        result = self._search_faiss(queries, k, allowed)
        if self._approximate and (result.ids == NO_ID).sum(axis=1).max() > k - min(k, live):
            return self._search_exactly(queries, k, allowed)  # the graph walk ended among tombstones
        return result

    def _search_faiss(self, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        assert self._sealed is not None
        # The thread's own setting: a request's search stays in its thread.
        faiss.omp_set_num_threads(1)
        selector = None
        if allowed is not None:
            selector = faiss.IDSelectorBatch(allowed)
        elif len(self._dead):
            buried = faiss.IDSelectorBatch(self._dead)
            selector = faiss.IDSelectorNot(buried)
        if self._approximate:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(_EF_SEARCH, 2 * k))
        else:
            parameters = faiss.SearchParameters(sel=selector)
        scores, ids = self._sealed.search(queries, k, params=parameters)
        distances = from_faiss(self._metric, scores)
        distances[ids == NO_ID] = np.inf
        return SearchResult(ids, distances.astype(np.float32))

    def _search_exactly(self, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        assert self._sealed is not None
        ids = np.setdiff1d(self._sealed_ids, self._dead) if allowed is None else allowed
        best = SearchResult(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
        for start in range(0, len(ids), _BLOCK_ROWS):
            block = ids[start : start + _BLOCK_ROWS]
            distances = exact_distances(self._metric, queries, self._sealed.reconstruct_batch(block))
            here = np.broadcast_to(block, distances.shape)
            best = nearest(np.hstack([best.ids, here]), np.hstack([best.distances, distances]), k)
        return best
