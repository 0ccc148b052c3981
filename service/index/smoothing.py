"""Means of the nearest rows of a sealed index: what database-side augmentation adds to a row (Turcot and Lowe, ICCV
Workshops 2009; Arandjelović and Zisserman, CVPR 2012)."""

import numpy as np

from service.index.faiss_index import FaissIndex
from service.index.kinds import BuiltIndex
from service.index.protocol import NO_ID, Ids, Metric, Vectors

_ROWS_AT_ONCE = 1_024


class Neighbourhoods:
    """The rows of a sealed index around given ones; it never changes, so the same rows give the same means."""

    def __init__(self, metric: Metric, dim: int, built: BuiltIndex) -> None:
        self._index = FaissIndex(metric, dim, built)
        self._built = built
        ids = built.ids
        self._order: Ids = np.argsort(ids)
        self._sorted_ids = ids[self._order]

    def means(self, ids: Ids, vectors: Vectors, count: int) -> Vectors:
        """Return (N, D) float32: of each of (N,) `ids` with (N, D) `vectors`, the mean of the `count` rows nearest to
        it, itself left out, as the index has them: of unit norm where its metric is cosine. A row without any is NaN.
        """
        parts = [
            self._means(ids[start : start + _ROWS_AT_ONCE], vectors[start : start + _ROWS_AT_ONCE], count)
            for start in range(0, len(ids), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty_like(vectors, np.float32)

    def _means(self, ids: Ids, vectors: Vectors, count: int) -> Vectors:
        found = self._index.search(vectors, count + 1).ids
        others = (found != ids[:, None]) & (found != NO_ID)
        others &= np.cumsum(others, axis=1) <= count  # an approximate search may miss the row itself
        rows, columns = np.nonzero(others)
        near = self._built.vectors(self._order[np.searchsorted(self._sorted_ids, found[rows, columns])])

        sums = np.zeros(vectors.shape, np.float64)
        np.add.at(sums, rows, near)
        with np.errstate(invalid="ignore"):
            means: Vectors = (sums / others.sum(axis=1)[:, None]).astype(np.float32)
        return means
