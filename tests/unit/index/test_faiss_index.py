"""`FaissIndex` against exhaustive search: the sealed part, the tail, tombstones and allowed sets, on every path."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.kinds import BuiltIndex
from service.index.protocol import Ids, IndexKind, Metric, SearchResult, Vectors
from service.index.tail import Tail
from tests.unit.index.building import (
    APPROXIMATE_KINDS,
    CODES,
    KINDS,
    as_rows,
    built,
    built_and_measured,
    some_ids,
    some_vectors,
)
from tests.unit.index.exhaustive import METRICS, all_distances, assert_finds_the_nearest, assert_is_nearest, recall

pytestmark = pytest.mark.xdist_group("FAISS index")


def sealed(metric: Metric, ids: Ids, vectors: Vectors, kind: IndexKind = "flat") -> FaissIndex:
    return FaissIndex(metric, vectors.shape[1], built(metric, ids, vectors, kind))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 128])
@pytest.mark.parametrize("count", [1, 2, 37, 2_500])
def test_a_sealed_flat_index_answers_as_exhaustive_search_does(metric: Metric, dim: int, count: int) -> None:
    ids, vectors = some_ids(count), some_vectors(count, dim)

    index = sealed(metric, ids, vectors)

    for k in (1, 10, count + 5):
        assert_finds_the_nearest(index, metric, as_rows(ids, vectors), some_vectors(3, dim, 2), k)
    assert index.tail_size == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_large_batch_is_answered_as_single_queries_are(metric: Metric) -> None:
    ids, vectors, queries = some_ids(3_000), some_vectors(3_000, 32), some_vectors(64, 32, 2)
    index = sealed(metric, ids, vectors)

    batch = index.search(queries, 5)

    singles = [index.search(queries[row : row + 1], 5) for row in range(len(queries))]
    np.testing.assert_array_equal(batch.ids, np.vstack([single.ids for single in singles]))
    np.testing.assert_allclose(batch.distances, np.vstack([single.distances for single in singles]), atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("count", [40, 2_600])
def test_replaced_and_removed_rows_are_answered_with_what_they_are_now(
    metric: Metric, of: IndexKind, count: int
) -> None:
    ids, vectors, queries = some_ids(count), some_vectors(count, 16), some_vectors(4, 16, 2)
    index, rows = sealed(metric, ids, vectors, of), as_rows(ids, vectors)
    replaced, new = ids[: count // 4], some_ids(30, seed=9)
    added, moved = np.concatenate([replaced, new]), some_vectors(count // 4 + 30, 16, 3)

    index.add(added, moved)
    index.remove(np.concatenate([ids[count // 4 : count // 3], new[:3], [5, 2**62 + 1]]).astype(np.int64))
    index.add(new[:1], moved[:1])
    index.add(new[:1], moved[1:2])

    rows.update(as_rows(added, moved))
    for id_ in [*ids[count // 4 : count // 3].tolist(), *new[:3].tolist()]:
        del rows[id_]
    rows[int(new[0])] = moved[1]
    assert_finds_the_nearest(index, metric, rows, queries, 10, tolerance=CODES[of])
    assert_finds_the_nearest(index, metric, rows, queries, len(rows) + 2, tolerance=CODES[of])
    assert index.tail_size == count // 4 + 28


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 0.5, 0.9, 1.0])
def test_only_allowed_rows_of_the_sealed_part_and_the_tail_are_found(metric: Metric, share: float) -> None:
    ids, vectors = some_ids(5_000), some_vectors(5_000, 8)
    index, rows = sealed(metric, ids[:4_500], vectors[:4_500]), as_rows(ids, vectors)
    index.add(ids[4_500:], vectors[4_500:])
    index.remove(ids[:100])
    for id_ in ids[:100].tolist():
        del rows[id_]
    random = np.random.default_rng(4)
    allowed = [*ids[random.random(5_000) < share].tolist(), 3, 4]  # some removed, two never there
    random.shuffle(allowed)

    assert_finds_the_nearest(index, metric, rows, some_vectors(3, 8, 2), 10, [*allowed, *allowed[:5]])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("with_sealed_part", [False, True])
def test_an_empty_index_answers_with_padding(metric: Metric, with_sealed_part: bool) -> None:
    nothing = np.empty(0, np.int64)
    index = sealed(metric, nothing, np.empty((0, 4), np.float32)) if with_sealed_part else FaissIndex(metric, 4)
    index.remove(some_ids(2))
    index.add(nothing, np.empty((0, 4), np.float32))

    for allowed in (None, [1], []):
        assert_finds_the_nearest(index, metric, {}, some_vectors(2, 4), 3, allowed)


@pytest.mark.parametrize("kind", KINDS)
def test_no_queries_give_no_rows(kind: IndexKind) -> None:
    index = sealed("l2", some_ids(3_000), some_vectors(3_000, 4), kind)

    found = index.search(np.empty((0, 4), np.float32), 3)

    assert found.ids.shape == found.distances.shape == (0, 3)


def test_a_row_can_leave_come_back_and_leave_again() -> None:
    ids, vectors = some_ids(20), some_vectors(20, 4)
    index = sealed("l2", ids, vectors)

    index.remove(ids)
    assert_finds_the_nearest(index, "l2", {}, vectors[:2], 3)
    index.add(ids[:2], vectors[:2])
    assert_finds_the_nearest(index, "l2", as_rows(ids[:2], vectors[:2]), vectors[:2], 3)
    index.remove(ids[:1])
    assert_finds_the_nearest(index, "l2", as_rows(ids[1:2], vectors[1:2]), vectors[:2], 3)


@pytest.mark.parametrize("where", ["sealed", "tail"])
def test_a_zero_vector_is_at_cosine_distance_1_from_everything(where: str) -> None:
    vectors = np.array([[0, 0], [2, 0], [-3, 0]], np.float32)
    index = sealed("cosine", np.arange(3), vectors) if where == "sealed" else FaissIndex("cosine", 2)
    if where == "tail":
        index.add(np.arange(3), vectors)

    found = index.search(np.array([[5, 0], [0, 0]], np.float32), 3)

    assert found.ids.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.distances.tolist() == [[0, 1, 2], [1, 1, 1]]


@pytest.mark.parametrize("where", ["sealed", "tail"])
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_far_from_the_origin_keep_their_small_distances(metric: Metric, where: str) -> None:
    vectors = some_vectors(300, 64) + 200
    ids = some_ids(300)
    index = sealed(metric, ids, vectors) if where == "sealed" else FaissIndex(metric, 64)
    if where == "tail":
        index.add(ids, vectors)

    assert_finds_the_nearest(index, metric, as_rows(ids, vectors), vectors[:30], 5, tolerance=2e-6)
    if metric == "l2":
        assert (index.search(vectors, 1).distances == 0).all()


def test_in_a_large_batch_of_long_vectors_too_distances_are_differences() -> None:
    ids, vectors = some_ids(2_100), 10 + 0.1 * some_vectors(2_100, 2_048)
    index = sealed("l2", ids, vectors)

    found = index.search(vectors[:130], 1)

    np.testing.assert_array_equal(found.ids[:, 0], ids[:130])
    assert (found.distances == 0).all()


def test_who_adds_waits_for_a_part_of_a_large_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    index = sealed("l2", some_ids(100), some_vectors(100, 4))
    adding = threading.Thread(target=index.add, args=(np.array([5]), some_vectors(1, 4)))
    sizes = []

    def search(tail: Tail, queries: Vectors, k: int, allowed: Ids | None) -> SearchResult:
        sizes.append(len(tail))
        if len(sizes) == 1:
            adding.start()
            while not index._lock._writers_waiting:
                time.sleep(0.001)
        return exhaustive(tail, queries, k, allowed)

    exhaustive = Tail.search
    monkeypatch.setattr(Tail, "search", search)
    found = index.search(some_vectors(300, 4), 101)

    adding.join()
    assert sizes[0] == 0
    assert sizes[1:] == [1] * (len(sizes) - 1)
    assert len(sizes) > 1
    assert (found.ids == 5).any(axis=1).sum() == 300 - 64


def test_equally_near_rows_come_by_id() -> None:
    index = sealed("l2", np.array([7, 3, 9, 1]), np.ones((4, 2), np.float32))
    index.add(np.array([5, 2]), np.ones((2, 2), np.float32))

    found = index.search(np.zeros((1, 2), np.float32), 6)

    assert found.ids.tolist() == [[1, 2, 3, 5, 7, 9]]


def test_a_query_that_overflows_float32_finds_nothing_but_does_not_fail() -> None:
    index = sealed("l2", some_ids(5), some_vectors(5, 4))

    with np.errstate(over="ignore", invalid="ignore"):
        found = index.search(np.full((1, 4), 1e30, np.float32), 3)

    assert (found.ids == -1).all()
    assert np.isposinf(found.distances).all()


def test_huge_and_tiny_vectors_have_a_direction() -> None:
    index = FaissIndex("cosine", 2)
    index.add(np.array([1, 2]), np.array([[1e30, 1e30], [1e-30, 0]], np.float32))

    found = index.search(np.array([[1, 0]], np.float32), 2)

    assert found.ids.tolist() == [[2, 1]]
    np.testing.assert_allclose(found.distances, [[0, 1 - np.sqrt(0.5)]], atol=1e-6)


@dataclass(frozen=True)
class Approximate:
    """A built index over rows in 20 clusters (row i in cluster i % 20), and queries near each."""

    metric: Metric
    kind: IndexKind
    ids: Ids
    vectors: Vectors
    queries: Vectors
    built: BuiltIndex

    def index(self) -> FaissIndex:
        return FaissIndex(self.metric, self.vectors.shape[1], self.built)


@pytest.fixture(scope="module", params=APPROXIMATE_KINDS)
def kind(request: pytest.FixtureRequest) -> IndexKind:
    of: IndexKind = request.param
    return of


@pytest.fixture(scope="module", params=METRICS)
def clustered(request: pytest.FixtureRequest, kind: IndexKind) -> Approximate:
    metric: Metric = request.param
    centers = 2 * some_vectors(20, 24, 5)
    vectors = centers[np.arange(6_000) % 20] + some_vectors(6_000, 24)
    if metric == "ip":  # approximate search by it is only good for vectors of like norms
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = some_ids(6_000)
    queries = centers + 0.5 * some_vectors(20, 24, 6)
    return Approximate(metric, kind, ids, vectors, queries, built_and_measured(metric, ids, vectors, kind)[0])


def test_an_approximate_search_finds_nearly_all_of_the_nearest(clustered: Approximate) -> None:
    found = clustered.index().search(clustered.queries, 10)

    assert recall(found, clustered.metric, clustered.ids, clustered.vectors, clustered.queries, 10) >= 0.95


@pytest.mark.parametrize("clusters", [1, 7, 14, 19])
def test_a_filter_on_a_part_of_the_space_loses_nothing(clustered: Approximate, clusters: int) -> None:
    passing = np.arange(len(clustered.ids)) % 20 < clusters

    found = clustered.index().search(clustered.queries, 10, clustered.ids[passing])

    assert np.isin(found.ids, clustered.ids[passing]).all()
    assert (
        recall(found, clustered.metric, clustered.ids[passing], clustered.vectors[passing], clustered.queries, 10)
        >= 0.95
    )


def test_strays_near_a_query_do_not_hide_the_rows_that_a_filter_is_about(clustered: Approximate) -> None:
    strays = np.random.default_rng(3).random(len(clustered.ids)) < 0.03
    passing = (np.arange(len(clustered.ids)) % 20 < 12) | strays

    found = clustered.index().search(clustered.queries, 10, clustered.ids[passing])

    assert np.isin(found.ids, clustered.ids[passing]).all()
    rows = clustered.ids[passing], clustered.vectors[passing]
    assert recall(found, clustered.metric, *rows, clustered.queries, 10) >= 0.95


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_ids_need_not_come_in_their_order(order: str) -> None:
    ids, vectors = np.sort(some_ids(2_500)), some_vectors(2_500, 4)
    if order == "descending":
        ids = ids[::-1].copy()
    index, rows = sealed("l2", ids, vectors), as_rows(ids, vectors)

    index.remove(ids[5:10])
    index.add(ids[:2], vectors[100:102])

    rows = {id_: vector for id_, vector in rows.items() if id_ not in ids[5:10]} | as_rows(ids[:2], vectors[100:102])
    assert_finds_the_nearest(index, "l2", rows, vectors[:5], 10)
    assert_finds_the_nearest(index, "l2", rows, vectors[:5], 10, ids[:2_300])


@pytest.mark.parametrize("removed_share", [0.3, 0.5, 0.95, 0.9995])
def test_tombstones_do_not_hide_the_rest(clustered: Approximate, removed_share: float) -> None:
    index = clustered.index()
    # The nearest ones go: what is left is where no walk from the query's surroundings would look.
    order = np.argsort(((clustered.vectors - clustered.queries[0]) ** 2).sum(axis=1))
    kept = order[int(removed_share * len(order)) :]

    index.remove(np.setdiff1d(clustered.ids, clustered.ids[kept]))

    found = index.search(clustered.queries, 10)
    if len(kept) < 10:
        rows = as_rows(clustered.ids[kept], clustered.vectors[kept])
        assert_is_nearest(found, clustered.metric, rows, clustered.queries, 10, CODES[clustered.kind])
    else:
        assert (
            recall(found, clustered.metric, clustered.ids[kept], clustered.vectors[kept], clustered.queries, 10) >= 0.95
        )


def test_what_was_removed_or_replaced_is_not_found_as_it_was(clustered: Approximate) -> None:
    index = clustered.index()
    before = index.search(clustered.queries, 10).ids
    replaced, removed = before[10, :1], np.setdiff1d(before, before[10])

    index.remove(removed)
    index.add(replaced, clustered.queries[:1])

    after = index.search(clustered.queries, 10)
    assert not after.is_exact
    assert not np.isin(after.ids, removed).any()
    assert after.ids[0, 0] == replaced[0]
    true = all_distances(clustered.metric, clustered.queries, clustered.queries[:1])
    rows, columns = np.nonzero(after.ids == replaced[0])
    np.testing.assert_allclose(after.distances[rows, columns], true[rows, 0], atol=1e-4 * np.abs(true).max())


def test_every_row_is_found_when_more_are_asked_for(clustered: Approximate) -> None:
    rows = as_rows(clustered.ids, clustered.vectors)

    assert_finds_the_nearest(
        clustered.index(), clustered.metric, rows, clustered.queries[:2], 6_001, tolerance=CODES[clustered.kind]
    )


def test_copies_of_one_vector_are_all_found(kind: IndexKind) -> None:
    ids, vectors = some_ids(4_000), some_vectors(4_000, 8)
    vectors[:1_000] = vectors[0]
    index = sealed("l2", ids, vectors, kind)

    found = index.search(vectors[:1], 60)

    assert np.isin(found.ids, ids[:1_000]).all()
    assert len(np.unique(found.ids)) == 60


# What may be found of 6,000 rows, from none to all, on both sides of every choice between gathering, scanning, walking.
SHARES = [0.0, 0.05, 0.35, 0.6, 0.95]


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("share", SHARES)
def test_a_filtered_search_of_sealed_rows_a_tail_and_tombstones_is_as_exhaustive_search_is(
    clustered: Approximate, share: float, k: int
) -> None:
    index, rows = clustered.index(), as_rows(clustered.ids, clustered.vectors)
    removed, replaced, new = clustered.ids[:300], clustered.ids[300:500], some_ids(200, seed=9)
    added, moved = np.concatenate([replaced, new]), clustered.vectors[:400] + 0.1 * some_vectors(400, 24, 3)
    index.remove(removed)
    index.add(added, moved)
    for id_ in removed.tolist():
        del rows[id_]
    rows.update(as_rows(added, moved))
    everything = np.concatenate([clustered.ids, new])
    passing = everything[np.random.default_rng(4).random(len(everything)) < share]

    found = index.search(clustered.queries, k, passing)

    left = {id_: rows[id_] for id_ in passing.tolist() if id_ in rows}
    assert ((found.ids >= 0).sum(axis=1) == min(k, len(left))).all()
    if found.is_exact:
        assert_is_nearest(found, clustered.metric, left, clustered.queries, k, CODES[clustered.kind])
    else:
        ids, vectors = np.array(list(left)), np.stack(list(left.values()))
        assert recall(found, clustered.metric, ids, vectors, clustered.queries, k) >= 0.95


def test_an_answer_says_whether_it_is_exact(clustered: Approximate) -> None:
    index, flat = clustered.index(), sealed(clustered.metric, clustered.ids, clustered.vectors)

    assert not index.search(clustered.queries, 10).is_exact
    assert not index.search(clustered.queries, 1, clustered.ids[:5_500]).is_exact
    assert index.search(clustered.queries, 20, clustered.ids[:3_000]).is_exact  # scanned
    assert index.search(clustered.queries, 10, clustered.ids[:100]).is_exact  # gathered
    assert index.search(clustered.queries, 1_000).is_exact  # it would compare as many rows as there are
    assert flat.search(clustered.queries, 10).is_exact
    assert flat.search(clustered.queries, 10, clustered.ids[:5_500]).is_exact


@pytest.mark.parametrize("share", [None, 0.9])
def test_an_exact_search_compares_every_row_that_may_be_found(clustered: Approximate, share: float | None) -> None:
    index, rows = clustered.index(), as_rows(clustered.ids, clustered.vectors)
    index.remove(clustered.ids[:50])
    passing = None if share is None else clustered.ids[: int(share * len(clustered.ids))]
    left = {id_: rows[id_] for id_ in (clustered.ids[50:] if passing is None else passing[50:]).tolist()}

    found = index.search(clustered.queries, 10, passing, exact=True)

    assert found.is_exact
    assert_is_nearest(found, clustered.metric, left, clustered.queries, 10, CODES[clustered.kind])


def test_a_walk_that_all_queries_were_scanned_after_is_exact(clustered: Approximate) -> None:
    index = clustered.index()
    order = np.argsort(((clustered.vectors - clustered.queries[0]) ** 2).sum(axis=1))

    found = index.search(clustered.queries[:1], 1, clustered.ids[order[1_500:]])

    rows = as_rows(clustered.ids[order[1_500:]], clustered.vectors[order[1_500:]])
    assert found.is_exact
    assert_is_nearest(found, clustered.metric, rows, clustered.queries[:1], 1, CODES[clustered.kind])
