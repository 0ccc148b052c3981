"""The exact part of an index: the rows that came after its file was built, in one growing array."""

import numpy as np

from service.index.protocol import Ids, Metric, SearchResult, Vectors, exact_distances, nearest, no_rows

_BLOCK_ROWS = 65_536


class Tail:
    """Rows that can be added, replaced and removed; searched exhaustively. Not locked: its index does that."""

    def __init__(self, metric: Metric, dim: int) -> None:
        self._metric = metric
        self._ids = np.empty(0, np.int64)
        self._vectors = np.empty((0, dim), np.float32)
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def ids(self) -> Ids:
        return self._ids[: len(self)].copy()

    def put(self, ids: Ids, vectors: Vectors) -> None:
        """Add rows, or replace those whose id is there."""
        self._grow(len(self) + len(ids))
        slots = np.empty(len(ids), np.int64)
        for position, id_ in enumerate(ids.tolist()):
            slots[position] = self._slots.setdefault(id_, len(self._slots))
        self._ids[slots] = ids
        self._vectors[slots] = vectors

    def drop(self, ids: Ids) -> None:
        """Remove rows; the last row moves into each gap."""
        for id_ in ids.tolist():
            slot = self._slots.pop(id_, None)
            if slot is None:
                continue
            last = len(self._slots)
            if slot != last:
                self._ids[slot] = self._ids[last]
                self._vectors[slot] = self._vectors[last]
                self._slots[int(self._ids[slot])] = slot

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        """Return the k nearest rows, exactly."""
        slots = None
        if allowed is not None:
            found = (self._slots.get(id_) for id_ in allowed.tolist())
            slots = np.array(sorted(slot for slot in found if slot is not None), np.int64)
        count = len(self) if slots is None else len(slots)
        best = no_rows(queries)
        for start in range(0, count, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, count)
            part = slice(start, end) if slots is None else slots[start:end]
            distances = exact_distances(self._metric, queries, self._vectors[part])
            ids = np.broadcast_to(self._ids[part], distances.shape)
            best = nearest(np.hstack([best.ids, ids]), np.hstack([best.distances, distances]), k)
        return best

    def _grow(self, count: int) -> None:
        if count > len(self._ids):
            capacity = max(count, 2 * len(self._ids), 1024)
            ids = np.empty(capacity, np.int64)
            vectors = np.empty((capacity, self._vectors.shape[1]), np.float32)
            ids[: len(self)] = self._ids[: len(self)]
            vectors[: len(self)] = self._vectors[: len(self)]
            self._ids, self._vectors = ids, vectors
