"""`FaissIndex`: a sealed FAISS index, a small exact tail, and tombstones, under one reader-writer lock.

The sealed part never changes. A row that is replaced or removed becomes a tombstone, which searches of the sealed part
leave out; a new row goes to the tail. Inside the sealed part a row is a position, so that which rows take part is one
mask, and no search or addition sorts or hashes as many ids as the gallery has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

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

# Below this share of rows that take part an approximate index loses them, and scoring exactly those rows is faster.
_EXACT_SHARE = 0.15
_EXACT_ROWS = 2_000
_EF_SEARCH = 64
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class BuiltIndex:
    """A sealed FAISS index (an IDMap) with what it is and how long it took; see `service.index.files`."""

    index: Any
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class _Sealed:
    """The rows of a built index, and which of them are live."""

    def __init__(self, metric: Metric, built: BuiltIndex) -> None:
        self._metric = metric
        self._approximate = built.kind != "flat"
        self._owner = built.index  # what is below is its
        self._index = faiss.downcast_index(built.index.index)
        self._ids: Ids = faiss.vector_to_array(built.index.id_map)
        self._order = np.argsort(self._ids)
        self._sorted_ids = self._ids[self._order]
        self._live = np.ones(len(self._ids), bool)
        self._live_bits = np.packbits(self._live, bitorder="little")
        self.live_count = len(self._ids)

    def live_ids(self) -> Ids:
        return self._ids[self._live]

    def bury(self, ids: Ids) -> None:
        """Make tombstones of those of (N,) ids that are here."""
        positions = self._live_positions(ids)
        if len(positions):
            self._live[positions] = False
            self._live_bits = np.packbits(self._live, bitorder="little")
            self.live_count = int(np.count_nonzero(self._live))

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        """Return up to k nearest live rows, among the unique `allowed` ids only when given."""
        positions = None if allowed is None else self._live_positions(allowed)
        count = self.live_count if positions is None else len(positions)
        if count == 0:
            return _nothing(queries)
        few = count <= max(_EXACT_ROWS, _EXACT_SHARE * len(self._ids))
        if few and (self._approximate or positions is not None):
            return self._search_exactly(queries, k, positions)
        result = self._search_faiss(queries, k, positions, count)
        if self._approximate and (result.ids[:, min(k, count) - 1] == NO_ID).any():
            return self._search_exactly(queries, k, positions)  # the graph walk ended among rows that take no part
        return result

    def _live_positions(self, ids: Ids) -> NDArray[np.int64]:
        if len(self._ids) == 0:
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self._sorted_ids, ids), len(self._ids) - 1)
        positions: NDArray[np.int64] = self._order[places[self._sorted_ids[places] == ids]]
        live: NDArray[np.int64] = positions[self._live[positions]]
        return live

    def _search_faiss(self, queries: Vectors, k: int, positions: NDArray[np.int64] | None, count: int) -> SearchResult:
        bits = self._live_bits
        if positions is not None:
            among = np.zeros(len(self._ids), bool)
            among[positions] = True
            bits = np.packbits(among, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits) if count < len(self._ids) else None
        if self._approximate:
            wider = len(self._ids) / count  # the walk passes the other rows too
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=int(max(_EF_SEARCH, 2 * k) * wider))
        else:
            parameters = faiss.SearchParameters(sel=selector)
        scores, found = self._index.search(queries, k, params=parameters)
        distances = from_faiss(self._metric, scores)
        distances[found == NO_ID] = np.inf
        return SearchResult(np.where(found == NO_ID, NO_ID, self._ids[found]), distances)

    def _search_exactly(self, queries: Vectors, k: int, positions: NDArray[np.int64] | None) -> SearchResult:
        rows = np.flatnonzero(self._live) if positions is None else np.sort(positions)
        best = _nothing(queries)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            distances = exact_distances(self._metric, queries, self._index.reconstruct_batch(block))
            ids = np.broadcast_to(self._ids[block], distances.shape)
            best = nearest(np.hstack([best.ids, ids]), np.hstack([best.distances, distances]), k)
        return best


class FaissIndex:
    """`service.index.protocol.VectorIndex`; vectors have `dim` numbers."""

    def __init__(self, metric: Metric, dim: int, sealed: BuiltIndex | None = None) -> None:
        self._metric = metric
        self._sealed = _Sealed(metric, sealed) if sealed is not None else None
        self._tail = Tail(metric, dim)
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        with self._lock.reading():
            return len(self._tail) + (self._sealed.live_count if self._sealed else 0)

    @property
    def tail_size(self) -> int:
        """How many rows are searched exhaustively; its owner may rebuild when this is large."""
        return len(self._tail)

    def ids(self) -> Ids:
        """Return every id, ascending."""
        with self._lock.reading():
            parts = [self._tail.ids()] + ([self._sealed.live_ids()] if self._sealed else [])
        return np.sort(np.concatenate(parts))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (N,) ids with (N, D) float32 vectors; an id that is there already is replaced."""
        if self._metric == "cosine":
            vectors = normalized(vectors)
        with self._lock.writing():
            if self._sealed:
                self._sealed.bury(ids)
            self._tail.put(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove (N,) ids; unknown ones are ignored."""
        with self._lock.writing():
            if self._sealed:
                self._sealed.bury(ids)
            self._tail.drop(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> SearchResult:
        """Return the k nearest of each of (Q, D) float32 queries, among `allowed` ids only when given."""
        if self._metric == "cosine":
            queries = normalized(queries)
        queries = np.ascontiguousarray(queries, np.float32)
        allowed = None if allowed is None else np.unique(allowed)
        with self._lock.reading(), _one_thread():
            sealed = self._sealed.search(queries, k, allowed) if self._sealed else _nothing(queries)
            tail = self._tail.search(queries, k, self._in_tail(allowed))
        return nearest(np.hstack([sealed.ids, tail.ids]), np.hstack([sealed.distances, tail.distances]), k)

    def _in_tail(self, allowed: Ids | None) -> Ids | None:
        """Return those of the sorted `allowed` ids that the tail has: it looks up each id it is given."""
        if allowed is None or len(allowed) == 0:
            return allowed
        ids = self._tail.ids()
        places = np.minimum(np.searchsorted(allowed, ids), len(allowed) - 1)
        found: Ids = ids[allowed[places] == ids]
        return found


def _nothing(queries: Vectors) -> SearchResult:
    return SearchResult(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep a search in its request's thread. The setting is this thread's own, and a build in it wants the old one."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
