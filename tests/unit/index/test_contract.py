"""What every `VectorIndex` promises, asked of FAISS and of Milvus (its embedded form), against exhaustive search."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.files import build_index
from service.index.milvus import Collections, Limits
from service.index.protocol import Ids, Metric, VectorIndex, Vectors
from tests.milvus import milvus
from tests.unit.index.building import as_rows, some_ids, some_vectors
from tests.unit.index.exhaustive import METRICS, assert_finds_the_nearest, recall

DIM = 16
pytestmark = pytest.mark.xdist_group("index contract")

Build = Callable[[Metric, Ids, Vectors], VectorIndex]  # of unique ids


def in_clusters(rows: int, dim: int, clusters: int = 20, seed: int = 5) -> Vectors:
    """Return unit vectors, row i in cluster i % clusters."""
    centers = 2 * some_vectors(clusters, dim, seed)
    vectors = centers[np.arange(rows) % clusters] + some_vectors(rows, dim, seed + 1)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def faiss_flat(metric: Metric, ids: Ids, vectors: Vectors) -> VectorIndex:
    """Most rows in the sealed part, the rest in the tail."""
    part = 3 * len(ids) // 4
    dim = vectors.shape[1]
    index = FaissIndex(metric, dim, build_index(metric, dim, [(ids[:part], vectors[:part])], "flat"))
    index.add(ids[part:], vectors[part:])
    return index


def faiss_hnsw(metric: Metric, ids: Ids, vectors: Vectors) -> VectorIndex:
    dim = vectors.shape[1]
    return FaissIndex(metric, dim, build_index(metric, dim, [(ids, vectors)], "hnsw"))


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collections]:
    # So small that a few hundred rows take every way through a filtered search.
    limits = Limits(ids_per_expression=100, neighbors=400, gathered_bytes=30 * 4 * DIM)
    with milvus(tmp_path_factory.mktemp("milvus")) as url:
        collections = Collections(url, limits=limits)
        yield collections
        collections.close()


@pytest.fixture(scope="module")
def milvus_flat(collections: Collections) -> Build:
    numbers = count()

    def build(metric: Metric, ids: Ids, vectors: Vectors) -> VectorIndex:
        index = collections.create(f"flat_{next(numbers)}", metric, vectors.shape[1], "flat")
        index.add(ids, vectors)
        return index

    return build


@pytest.fixture(scope="module")
def milvus_hnsw(collections: Collections) -> Build:
    numbers = count()

    def build(metric: Metric, ids: Ids, vectors: Vectors) -> VectorIndex:
        name = f"hnsw_{next(numbers)}"
        index = collections.create(name, metric, vectors.shape[1], "hnsw")
        index.add(ids, vectors)
        collections.flush(name)
        return index

    return build


@pytest.fixture(params=["faiss", "milvus"])
def exact(request: pytest.FixtureRequest) -> Build:
    """Builds an index that compares every query with every row."""
    return faiss_flat if request.param == "faiss" else request.getfixturevalue("milvus_flat")


@pytest.fixture(params=["faiss", "milvus"])
def graph(request: pytest.FixtureRequest) -> Build:
    """Builds an index that walks a graph."""
    return faiss_hnsw if request.param == "faiss" else request.getfixturevalue("milvus_hnsw")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "rows"), [(1, 1), (3, 2), (2, 37), (128, 400)])
def test_an_exact_index_answers_as_exhaustive_search_does(exact: Build, metric: Metric, dim: int, rows: int) -> None:
    ids, vectors = some_ids(rows), some_vectors(rows, dim)

    index = exact(metric, ids, vectors)

    for k in (1, 10, rows + 5):
        assert_finds_the_nearest(index, metric, as_rows(ids, vectors), some_vectors(3, dim, 2), k)
    assert index.search(vectors[:1], 1).is_exact


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_index_answers_with_padding(exact: Build, metric: Metric) -> None:
    index = exact(metric, np.empty(0, np.int64), np.empty((0, 4), np.float32))
    index.remove(some_ids(2))
    index.add(np.empty(0, np.int64), np.empty((0, 4), np.float32))

    for allowed in (None, [1], []):
        assert_finds_the_nearest(index, metric, {}, some_vectors(2, 4), 3, allowed)


def test_no_queries_give_no_rows(exact: Build) -> None:
    index = exact("l2", some_ids(30), some_vectors(30, 4))

    for allowed in (None, np.arange(3)):
        found = index.search(np.empty((0, 4), np.float32), 3, allowed)
        assert found.ids.shape == found.distances.shape == (0, 3)


@pytest.mark.parametrize("metric", METRICS)
def test_replaced_and_removed_rows_are_answered_with_what_they_are_now(exact: Build, metric: Metric) -> None:
    ids, vectors, queries = some_ids(400), some_vectors(400, 16), some_vectors(4, 16, 2)
    index, rows = exact(metric, ids, vectors), as_rows(ids, vectors)
    replaced, new = ids[:100], some_ids(30, seed=9)
    added, moved = np.concatenate([replaced, new]), some_vectors(130, 16, 3)

    index.add(added, moved)
    index.remove(np.concatenate([ids[100:150], new[:3], [5, 2**62 + 1]]).astype(np.int64))
    index.add(new[[0, 0]], moved[:2])  # the later one of the same id counts

    rows.update(as_rows(added, moved))
    for id_ in [*ids[100:150].tolist(), *new[:3].tolist()]:
        del rows[id_]
    rows[int(new[0])] = moved[1]
    assert_finds_the_nearest(index, metric, rows, queries, 10)
    assert_finds_the_nearest(index, metric, rows, queries, len(rows) + 2)


@pytest.mark.parametrize("metric", METRICS)
def test_only_allowed_rows_are_found(exact: Build, metric: Metric) -> None:
    ids, vectors = some_ids(800), some_vectors(800, DIM)
    index, rows = exact(metric, ids, vectors), as_rows(ids, vectors)
    index.remove(ids[:10])
    for id_ in ids[:10].tolist():
        del rows[id_]
    random = np.random.default_rng(4)

    for share in (0.01, 0.1, 0.2, 0.5, 0.9, 1.0):
        allowed = [*ids[random.random(800) < share].tolist(), 3, 4]  # some removed, two never there
        random.shuffle(allowed)
        for k in (10, 100):
            assert_finds_the_nearest(index, metric, rows, some_vectors(3, DIM, 2), k, [*allowed, *allowed[:5]])


def test_allowed_rows_that_are_all_far_from_the_query_are_found(exact: Build) -> None:
    ids, vectors, query = some_ids(800), some_vectors(800, DIM), some_vectors(1, DIM, 2)
    index = exact("l2", ids, vectors)
    order = np.argsort(((vectors - query) ** 2).sum(axis=1))

    for nearer in (100, 400, 600):
        allowed = ids[order[nearer:]].tolist()
        assert_finds_the_nearest(index, "l2", as_rows(ids, vectors), query, 10, allowed)


def test_a_zero_vector_is_at_cosine_distance_1_from_everything(exact: Build) -> None:
    vectors = np.array([[0, 0], [2, 0], [-3, 0]], np.float32)
    index = exact("cosine", np.arange(3), vectors)

    found = index.search(np.array([[5, 0], [0, 0]], np.float32), 3)

    assert found.ids.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.distances.tolist() == [[0, 1, 2], [1, 1, 1]]


def test_huge_and_tiny_vectors_have_a_direction(exact: Build) -> None:
    index = exact("cosine", np.array([1, 2]), np.array([[1e30, 1e30], [1e-30, 0]], np.float32))

    found = index.search(np.array([[1, 0]], np.float32), 2)

    assert found.ids.tolist() == [[2, 1]]
    np.testing.assert_allclose(found.distances, [[0, 1 - np.sqrt(0.5)]], atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_far_from_the_origin_keep_their_small_distances(exact: Build, metric: Metric) -> None:
    vectors = some_vectors(300, 64) + 200
    ids = some_ids(300)

    index = exact(metric, ids, vectors)

    assert_finds_the_nearest(index, metric, as_rows(ids, vectors), vectors[:30], 5, tolerance=2e-6)


def test_equally_near_rows_come_by_id(exact: Build) -> None:
    index = exact("l2", np.array([7, 3, 9, 1, 5, 2]), np.ones((6, 2), np.float32))

    found = index.search(np.zeros((1, 2), np.float32), 6)

    assert found.ids.tolist() == [[1, 2, 3, 5, 7, 9]]


def test_a_query_that_overflows_float32_finds_nothing_but_does_not_fail(exact: Build) -> None:
    index = exact("l2", some_ids(5), some_vectors(5, 4))

    with np.errstate(over="ignore", invalid="ignore"):
        found = index.search(np.full((1, 4), 1e30, np.float32), 3)

    assert (found.ids == -1).all()
    assert np.isposinf(found.distances).all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_finds_nearly_all_of_the_nearest_and_does_not_say_that_it_is_exact(
    graph: Build, metric: Metric
) -> None:
    ids, vectors, queries = some_ids(2_500), in_clusters(2_500, DIM), in_clusters(20, DIM)
    index = graph(metric, ids, vectors)

    found = index.search(queries, 10)

    assert recall(found, metric, ids, vectors, queries, 10) >= 0.95
    assert not found.is_exact


@pytest.mark.parametrize("clusters", [1, 7, 19])
def test_a_filter_on_a_part_of_the_space_loses_nothing(graph: Build, clusters: int) -> None:
    ids, vectors, queries = some_ids(2_500), in_clusters(2_500, DIM), in_clusters(20, DIM)
    index = graph("l2", ids, vectors)
    passing = np.arange(len(ids)) % 20 < clusters

    found = index.search(queries, 10, ids[passing])

    assert np.isin(found.ids, ids[passing]).all()
    assert recall(found, "l2", ids[passing], vectors[passing], queries, 10) >= 0.95


def test_a_few_rows_of_a_graph_are_found_exactly(graph: Build) -> None:
    ids, vectors = some_ids(1_000), in_clusters(1_000, DIM)
    index = graph("l2", ids, vectors)

    found = index.search(vectors[:3], 10, ids[100:120])

    assert found.is_exact
    assert recall(found, "l2", ids[100:120], vectors[100:120], vectors[:3], 10) == 1
