"""Streamed neighbours against a slow version that sorts all distances of one query at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from models.judging.search import NO_ID, AnyVectors, Ids, NearestItems, Neighbours, fingerprints, nearest_items
from models.metrics import Metric, Vectors

METRICS: list[Metric] = ["l2", "cosine", "ip"]


def slow_distance(query: Vectors, item: AnyVectors, metric: Metric) -> float:
    a, b = query.astype(np.float64), item.astype(np.float64)
    if metric == "l2":
        return float(np.float32(np.sqrt(((a - b) ** 2).sum())))
    if metric == "ip":
        return float(np.float32(-(a * b).sum()))
    norms = np.sqrt((a**2).sum() * (b**2).sum())
    return float(np.float32(np.clip(1 - (a * b).sum() / (norms or 1), 0, 2)))


def slow_nearest(queries: Vectors, ids: Ids, items: AnyVectors, k: int, metric: Metric, leave_out: Ids) -> Neighbours:
    found = np.full((len(queries), k), NO_ID)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for row, query in enumerate(queries):
        ranked = sorted(
            (slow_distance(query, item, metric), int(id_))
            for id_, item in zip(ids, items, strict=True)
            if id_ != leave_out[row] and np.isfinite(item).all()
        )[:k]
        for place, (distance, id_) in enumerate(ranked):
            found[row, place], distances[row, place] = id_, distance
    return Neighbours(found, distances)


def in_chunks(ids: Ids, items: AnyVectors, size: int) -> list[tuple[Ids, AnyVectors]]:
    return [(ids[start : start + size], items[start : start + size]) for start in range(0, len(ids), size)]


def check(found: Neighbours, expected: Neighbours) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("size", [1, 7, 1500, 4000])
def test_the_answer_is_the_slow_one_in_chunks_of_any_size(metric: Metric, dtype: type, size: int) -> None:
    generator = np.random.default_rng(4)
    queries = generator.standard_normal((9, 12), np.float32)
    items: AnyVectors = generator.standard_normal((2500 if size > 7 else 60, 12), np.float32).astype(dtype)
    ids = generator.permutation(len(items)).astype(np.int64) + 10
    leave_out = np.where(np.arange(9) % 2, ids[:9], NO_ID)

    found = nearest_items(queries, in_chunks(ids, items, size), 5, metric, leave_out)

    check(found, slow_nearest(queries, ids, items, 5, metric, leave_out))


@settings(deadline=None)
@given(
    queries=arrays.arrays(np.float32, (3, 2), elements=st.integers(-2, 2)),
    items=arrays.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-2, 2)),
    metric=st.sampled_from(METRICS),
    size=st.integers(1, 12),
    own=arrays.arrays(np.int64, 3, elements=st.integers(-1, 8)),
)
def test_ties_and_copies_go_to_the_smaller_id(
    queries: Vectors, items: Vectors, metric: Metric, size: int, own: NDArray[np.int64]
) -> None:
    ids = np.random.default_rng(len(items)).permutation(len(items)).astype(np.int64)

    found = nearest_items(queries, in_chunks(ids, items, size), 3, metric, own)

    check(found, slow_nearest(queries, ids, items, 3, metric, own))


@pytest.mark.parametrize("metric", METRICS)
def test_near_copies_far_from_the_origin_are_told_apart(metric: Metric) -> None:
    generator = np.random.default_rng(2)
    items = (1000 + 1e-3 * generator.standard_normal((3000, 16))).astype(np.float32)
    ids = np.arange(3000)
    queries = items[:5] + np.float32(1e-4)
    nobody = np.full(5, NO_ID)

    found = nearest_items(queries, in_chunks(ids, items, 1100), 4, metric)

    check(found, slow_nearest(queries, ids, items, 4, metric, nobody))


def test_more_queries_than_a_block_and_a_collapsed_gallery_are_answered() -> None:
    generator = np.random.default_rng(3)
    items = generator.standard_normal((5000, 4), np.float32)
    items[::2] = 0
    ids, queries = np.arange(5000), generator.standard_normal((600, 4), np.float32) / np.float32(10)

    found = nearest_items(queries, in_chunks(ids, items, 2000), 3, "l2")

    some = np.arange(0, 600, 97)
    expected = slow_nearest(queries[some], ids, items, 3, "l2", np.full(len(some), NO_ID))
    check(Neighbours(found.ids[some], found.distances[some]), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_items_that_are_not_finite_hide_no_others_and_are_found_by_none(metric: Metric) -> None:
    items = np.random.default_rng(0).standard_normal((200, 3), np.float32)
    items[[3, 70]] = [[np.nan, 0, 0], [np.inf, 0, 0]]
    queries = items[:3].copy()

    found = nearest_items(queries, [(np.arange(200), items)], 4, metric)

    check(found, slow_nearest(queries, np.arange(200), items, 4, metric, np.full(3, NO_ID)))


def test_fewer_items_than_asked_for_are_padded() -> None:
    found = nearest_items(np.ones((1, 2), np.float32), [(np.array([7]), np.zeros((1, 2), np.float32))], 3, "l2")

    assert found.ids.tolist() == [[7, NO_ID, NO_ID]]
    assert found.distances[0, 1:].tolist() == [np.inf, np.inf]


def test_queries_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ValueError, match="finite"):
        NearestItems(np.array([[np.nan]], np.float32), 1, "l2")


@pytest.mark.parametrize(("dtype", "dim"), [(np.float16, 3), (np.float32, 5), (np.float16, 128)])
def test_fingerprints_are_equal_for_equal_rows_alone(dtype: type, dim: int) -> None:
    rows: AnyVectors = np.random.default_rng(1).integers(-3, 4, (2000, dim)).astype(dtype)
    rows[1000:] = rows[:1000]

    found = fingerprints(rows)

    assert (found[1000:] == found[:1000]).all()
    assert len(np.unique(found)) == len(np.unique(rows, axis=0))
