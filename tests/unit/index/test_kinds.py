"""Every kind of index against exhaustive search: dimensions, sizes and metrics; and how much memory a kind asks for."""

import faiss
import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.files import build_index
from service.index.kinds import training_rows
from service.index.protocol import IndexKind, Metric, SearchResult, Vectors
from tests.unit.index.building import CODES, KINDS, built, built_and_measured
from tests.unit.index.exhaustive import METRICS, all_distances, assert_is_nearest


def some_vectors(count: int, dim: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def assert_is_nearly_nearest(
    found: SearchResult, metric: Metric, vectors: Vectors, queries: Vectors, k: int, tolerance: float
) -> None:
    """Fail unless every distance is that of its row (ids are 0, 1, ...), and 95 % of them are among the k smallest."""
    distances = all_distances(metric, queries, vectors)
    scale = tolerance * max(1.0, float(np.abs(distances).max()))
    of_found = np.take_along_axis(distances, found.ids, axis=1)
    np.testing.assert_allclose(found.distances, of_found, atol=scale)
    assert all(len(np.unique(ids)) == k for ids in found.ids)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert (of_found <= np.sort(distances, axis=1)[:, k - 1 : k] + scale).mean() >= 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 128])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 2_300])  # none, one, fewer than make two lists, approximate
def test_every_kind_answers_as_exhaustive_search_does(kind: IndexKind, metric: Metric, dim: int, count: int) -> None:
    ids, vectors, queries = np.arange(count), some_vectors(count, dim), some_vectors(20, dim, 2)
    if metric == "ip":  # approximate search by it is only good for vectors of like norms
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = FaissIndex(metric, dim, built_and_measured(metric, ids, vectors, kind)[0])

    for k in (1, 10):
        found = index.search(queries, k)

        if found.is_exact:
            assert_is_nearest(found, metric, dict(enumerate(vectors)), queries, k, CODES[kind])
        else:
            assert_is_nearly_nearest(found, metric, vectors, queries, k, CODES[kind])
    everything = index.search(queries[:2], count + 5)
    assert_is_nearest(everything, metric, dict(enumerate(vectors)), queries[:2], count + 5, CODES[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 700])
def test_all_rows_are_those_that_are_known_and_the_others_as_their_codes_have_them(kind: IndexKind, count: int) -> None:
    ids, vectors = 3 * np.arange(count)[::-1], some_vectors(count, 8)
    index = built("l2", ids, vectors, kind)
    known = np.arange(0, 900, 2)

    chunks = list(index.all_rows([(known[:300], np.full((300, 8), 7.0)), (known[300:], np.full((150, 8), 7.0))], 100))

    found = {int(id_): vector for part, rows in chunks for id_, vector in zip(part, rows, strict=True)}
    assert sum(len(part) for part, _ in chunks) == len(found) == count
    assert set(found) == set(ids.tolist())
    assert all(len(part) <= 100 for part, _ in chunks[2:])
    for id_, vector in zip(ids.tolist(), vectors, strict=True):
        expected = 7.0 if id_ in known else vector
        np.testing.assert_allclose(found[id_], expected, atol=4 * CODES[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_all_one_vector_are_all_found(kind: IndexKind, metric: Metric) -> None:
    ids, vectors = np.arange(2_100), np.ones((2_100, 4), np.float32)
    index = FaissIndex(metric, 4, built_and_measured(metric, ids, vectors, kind)[0])

    ten, all_ = index.search(vectors[:1], 10), index.search(vectors[:1], 2_100)

    assert len(np.unique(ten.ids)) == 10
    assert sorted(all_.ids[0].tolist()) == list(range(2_100))
    for found in (ten, all_):
        np.testing.assert_allclose(found.distances, all_distances(metric, vectors[:1], vectors[:1])[0, 0], atol=1e-3)


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8"])
def test_equally_near_rows_come_by_id_where_all_are_compared(kind: IndexKind) -> None:
    ids = np.random.default_rng(0).permutation(1_500)
    index = FaissIndex("l2", 4, built("l2", ids, np.ones((1_500, 4), np.float32), kind))

    assert index.search(np.zeros((1, 4), np.float32), 1_500).ids[0].tolist() == list(range(1_500))


def test_a_kind_takes_as_many_bytes_as_it_says() -> None:
    count, dim = 20_000, 64
    ids, vectors = np.arange(count), some_vectors(count, dim)

    sizes = {
        kind: faiss.serialize_index(built("l2", ids, vectors, kind).index).nbytes / count - 8  # ids have 8 in each
        for kind in ("flat", "ivf", "ivf_sq8")
    }

    centres = training_rows("ivf", dim, count) / 64 * 4 * dim / count
    assert sizes["flat"] == pytest.approx(4 * dim, rel=0.01)
    assert sizes["ivf"] == pytest.approx(2 * dim + 16 + centres, rel=0.01)
    assert sizes["ivf_sq8"] == pytest.approx(dim + 16 + centres, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 128, 4_096])
@pytest.mark.parametrize("count", [0, 1, 1_000, 10**6, 10**9])
def test_a_sample_to_learn_from_is_bounded(kind: IndexKind, dim: int, count: int) -> None:
    rows = training_rows(kind, dim, count)

    assert 0 <= rows <= count
    assert rows * dim * 4 <= 2**28
    if kind in ("flat", "hnsw"):
        assert rows == 0
    elif count == 10**6 and dim == 128:
        assert rows // 64 == 4_000  # 4 √n lists


def test_learning_from_few_rows_warns_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    vectors = some_vectors(300, 4)

    build_index("l2", 4, [(np.arange(300), vectors)], "ivf", vectors)

    assert capfd.readouterr().err == ""
