"""Distances, and the nearest of them, against a computation of one pair at a time in float64."""

import numpy as np
import pytest

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
from tests.unit.index.exhaustive import METRICS, all_distances


def some_vectors(count: int, dim: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def sorted_out(ids: Ids, distances: Vectors, k: int) -> list[list[tuple[float, int]]]:
    """Return the first k (distance, id) pairs of each row; those without a finite distance are none."""
    pairs = [[(d, i) for d, i in zip(*row, strict=True) if np.isfinite(d)] for row in zip(distances, ids, strict=True)]
    return [sorted(row)[:k] for row in pairs]


def pairs_of(found: SearchResult) -> list[list[tuple[float, int]]]:
    rows = zip(found.distances.tolist(), found.ids.tolist(), strict=True)
    return [[(d, i) for d, i in zip(distances, ids, strict=True) if i != NO_ID] for distances, ids in rows]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("queries", "count", "dim"), [(1, 1, 1), (5, 33, 7), (3, 200, 128)])
def test_distances_are_those_of_each_pair(metric: Metric, queries: int, count: int, dim: int) -> None:
    left, right = some_vectors(queries, dim), some_vectors(count, dim, seed=1)
    if metric == "cosine":
        left, right = normalized(left), normalized(right)

    distances = exact_distances(metric, left, right)

    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, all_distances(metric, left, right), atol=1e-4)


def test_a_small_distance_of_long_vectors_is_not_lost_in_rounding() -> None:
    vectors = 1_000 + some_vectors(20, 16)
    moved = vectors + np.float32(0.01)

    distances = exact_distances("l2", vectors, np.concatenate([vectors, moved]))

    np.testing.assert_allclose(np.diagonal(distances[:, :20]), 0)
    np.testing.assert_allclose(np.diagonal(distances[:, 20:]), np.linalg.norm(moved - vectors, axis=1), rtol=1e-5)


def test_scores_of_faiss_become_distances_that_are_small_when_close() -> None:
    scores = np.array([[4.0, 0.25, -1e-7]], np.float32)

    assert from_faiss("l2", scores).tolist() == [[2.0, 0.5, 0.0]]
    assert from_faiss("ip", scores)[0, :2].tolist() == [-4.0, -0.25]
    assert from_faiss("cosine", np.array([[1.0000001, -1.1, 0.5]], np.float32)).tolist() == [[0.0, 2.0, 0.5]]


@pytest.mark.parametrize("k", [1, 3, 10, 60])
@pytest.mark.parametrize("of_each_query", [False, True])
def test_the_nearest_are_the_first_of_a_full_sort_by_distance_and_id(k: int, of_each_query: bool) -> None:
    random = np.random.default_rng(k)
    distances = random.integers(0, 6, (20, 50)).astype(np.float32)  # so few values that many tie
    distances[random.random(distances.shape) < 0.1] = np.inf
    ids = np.stack([random.permutation(50) + 7 for _ in range(20)])
    if not of_each_query:
        ids = np.broadcast_to(ids[0], ids.shape)

    found = nearest(ids if of_each_query else ids[0], distances, k)

    assert found.ids.shape == found.distances.shape == (20, k)
    assert pairs_of(found) == sorted_out(ids, distances, k)
    assert np.isposinf(found.distances[found.ids == NO_ID]).all()


def test_norms_become_one_whatever_their_size_and_a_zero_vector_stays() -> None:
    vectors = np.array([[3, 4], [3e30, 4e30], [3e-20, 4e-20], [0, 0]], np.float32)

    expected = np.array([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, 0]], np.float32)
    np.testing.assert_allclose(normalized(vectors), expected, rtol=1e-6)
