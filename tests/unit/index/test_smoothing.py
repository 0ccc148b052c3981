"""Means of the nearest rows, against a slow obvious version over every kind of index and every metric."""

from typing import get_args

import numpy as np
import pytest

from service.index.files import build_index
from service.index.protocol import Ids, IndexKind, Metric, Vectors, exact_distances, normalized
from service.index.smoothing import Neighbourhoods
from tests.unit.index.building import CODES, KINDS, built, some_ids, some_vectors

DIM, ROWS, COUNT = 12, 400, 5


def slow_means(metric: Metric, ids: Ids, vectors: Vectors, count: int) -> Vectors:
    """Compare every row with every other one, and sort."""
    rows = normalized(vectors) if metric == "cosine" else vectors
    means = []
    for own in range(len(ids)):
        others = [other for other in range(len(ids)) if other != own]
        distances = exact_distances(metric, rows[own : own + 1], rows[others])[0]
        nearest = [others[place] for place in np.lexsort((ids[others], distances))[:count]]
        means.append(rows[nearest].mean(axis=0))
    return np.array(means, np.float32)


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("kind", KINDS)
def test_means_are_of_the_nearest_other_rows(kind: IndexKind, metric: Metric) -> None:
    ids, vectors = some_ids(ROWS), some_vectors(ROWS, DIM)
    index = built(metric, ids, vectors, kind)
    if kind.startswith("ivf"):
        index.rows.index.nprobe = index.rows.index.nlist  # every list: exact, by its codes

    means = Neighbourhoods(metric, DIM, index).means(ids, vectors, COUNT)

    expected = slow_means(metric, ids, vectors, COUNT)
    off = np.linalg.norm(means - expected, axis=1)
    # Codes of 8 bits swap neighbours that are about as near as each other.
    assert np.mean(off < 20 * CODES[kind]) > (0.98 if kind != "ivf_sq8" else 0.9)


def test_the_same_rows_have_the_same_means_in_any_company() -> None:
    ids, vectors = some_ids(ROWS), some_vectors(ROWS, DIM)
    near = Neighbourhoods("l2", DIM, built("l2", ids, vectors, "hnsw"))
    order = np.random.default_rng(3).permutation(ROWS)

    together, apart = near.means(ids, vectors, COUNT), near.means(ids[order], vectors[order], COUNT)

    assert (together[order] == apart).all()


def test_a_row_among_copies_of_it_keeps_its_place() -> None:
    ids = np.arange(30, dtype=np.int64)
    vectors = np.repeat(some_vectors(3, DIM), 10, axis=0)

    means = Neighbourhoods("l2", DIM, built("l2", ids, vectors)).means(ids, vectors, COUNT)

    np.testing.assert_allclose(means, vectors, atol=1e-6)


def test_fewer_neighbours_than_asked_for_are_all_of_them() -> None:
    ids, vectors = np.array([5, 9, 2], np.int64), some_vectors(3, DIM)

    means = Neighbourhoods("l2", DIM, built("l2", ids, vectors)).means(ids, vectors, 20)

    np.testing.assert_allclose(means, (vectors.sum(axis=0) - vectors) / 2, atol=1e-6)


def test_a_row_that_the_index_does_not_have_gets_as_many_neighbours() -> None:
    ids, vectors = some_ids(ROWS), some_vectors(ROWS, DIM)
    near = Neighbourhoods("l2", DIM, built("l2", ids, vectors))

    (mean,) = near.means(np.array([-7], np.int64), vectors[:1], 1)

    np.testing.assert_allclose(mean, vectors[0], atol=1e-6)


def test_a_row_alone_has_no_mean() -> None:
    ids, vectors = np.array([4], np.int64), some_vectors(1, DIM)

    assert np.isnan(Neighbourhoods("l2", DIM, built("l2", ids, vectors)).means(ids, vectors, 3)).all()


def test_no_rows_have_no_means() -> None:
    empty = np.empty((0, DIM), np.float32)
    near = Neighbourhoods("l2", DIM, build_index("l2", DIM, [], "flat"))

    assert near.means(np.empty(0, np.int64), empty, 3).shape == (0, DIM)
