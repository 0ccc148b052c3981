"""The slow obvious version of a search: every distance in float64, in pgvector's sense, and a full sort."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.index.protocol import Ids, Metric, SearchResult, VectorIndex, Vectors

METRICS: tuple[Metric, ...] = ("l2", "cosine", "ip")


def all_distances(metric: Metric, queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """Return (Q, N) float64 distances."""
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return np.stack([np.sqrt(((query - right) ** 2).sum(axis=1)) for query in left])
    products: NDArray[np.float64] = left @ right.T
    if metric == "ip":
        return -products
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
    similarities: NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return 1 - similarities


def assert_finds_the_nearest(
    index: VectorIndex,
    metric: Metric,
    rows: dict[int, Vectors],
    queries: Vectors,
    k: int,
    allowed: Iterable[int] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Fail unless the index holds exactly `rows`, and finds their k nearest, up to ties and rounding."""
    assert index.ids().tolist() == sorted(rows)
    assert len(index) == len(rows)
    passing = None if allowed is None else list(allowed)
    chosen = rows.keys() if passing is None else rows.keys() & set(passing)
    found = index.search(queries, k, None if passing is None else np.array(passing, np.int64))
    assert_is_nearest(found, metric, {id_: rows[id_] for id_ in chosen}, queries, k, tolerance)


def assert_is_nearest(
    found: SearchResult, metric: Metric, rows: dict[int, Vectors], queries: Vectors, k: int, tolerance: float
) -> None:
    count = min(k, len(rows))
    assert found.ids.shape == found.distances.shape == (len(queries), k)
    assert found.ids.dtype == np.int64
    assert found.distances.dtype == np.float32
    assert (found.ids[:, count:] == -1).all()
    assert np.isposinf(found.distances[:, count:]).all()
    if not count:
        return
    ids = list(rows)
    distances = all_distances(metric, queries, np.stack(list(rows.values())))
    scale = max(1.0, float(np.abs(distances).max()))
    for row in range(len(queries)):
        of = dict(zip(ids, distances[row], strict=True))
        answer = found.ids[row, :count].tolist()
        assert len(set(answer)) == count
        assert set(answer) <= set(ids)
        np.testing.assert_allclose(found.distances[row, :count], [of[id_] for id_ in answer], atol=tolerance * scale)
        np.testing.assert_allclose(
            found.distances[row, :count], np.sort(distances[row])[:count], atol=tolerance * scale
        )
        assert (np.diff(found.distances[row, :count]) >= 0).all()


def recall(found: SearchResult, metric: Metric, ids: Ids, vectors: Vectors, queries: Vectors, k: int) -> float:
    """Return the share of the true k nearest that were found; for vectors without ties."""
    true = ids[np.argsort(all_distances(metric, queries, vectors), axis=1)[:, :k]]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true.tolist(), found.ids.tolist(), strict=True)]))
