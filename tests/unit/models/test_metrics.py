"""Metrics against slow versions that rank one query at a time, and against scikit-learn."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.metrics import (
    BlockSizes,
    Metric,
    RetrievalPerQuery,
    cmc,
    first_match_ranks,
    gap_closed,
    linear_cka,
    mean_average_precision,
    negative_flip_rate,
    positive_flip_rate,
    query_metrics,
    retrieval_metrics,
    vector_errors,
)

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def random_data(queries: int, items: int, classes: int, *, ties: bool, seed: int) -> Data:
    """Vectors with many exactly equal distances when `ties`: small whole numbers in few dimensions."""
    generator = np.random.default_rng(seed)

    def vectors(count: int) -> NDArray[np.float32]:
        if ties:
            return generator.integers(-1, 2, (count, 3)).astype(np.float32)
        return generator.standard_normal((count, 8)).astype(np.float32)

    labels = [generator.integers(0, classes, count).astype(np.int64) for count in (queries, items)]
    return vectors(queries), labels[0], vectors(items), labels[1]


def distance(query: NDArray[np.float32], item: NDArray[np.float32], metric: Metric) -> float:
    a, b = query.astype(np.float64), item.astype(np.float64)
    if metric == "l2":
        return float(np.float32(((a - b) ** 2).sum()))
    if metric == "cosine":
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosine_distance = 1 - (a @ b) / norms if norms else 1.0
        return float(np.float32(cosine_distance)) if cosine_distance > 1e-12 else 0.0
    return float(np.float32(-(a @ b)))


def slow_rankings(data: Data, self_match: bool, metric: Metric) -> list[tuple[list[float], list[bool]]]:
    """Per query, the distances of its items in the gallery's order, and which of them have its label."""
    query, query_labels, gallery, gallery_labels = data
    rankings = []
    for i in range(len(query)):
        kept = [j for j in range(len(gallery)) if not (self_match and i == j)]
        distances = [distance(query[i], gallery[j], metric) for j in kept]
        rankings.append((distances, [bool(query_labels[i] == gallery_labels[j]) for j in kept]))
    return rankings


def slow_rank(distances: list[float], matches: list[bool]) -> int | None:
    ranking = sorted(range(len(distances)), key=lambda j: (distances[j], j))
    return next((rank for rank, j in enumerate(ranking) if matches[j]), None)


def slow_cmc(rankings: list[tuple[list[float], list[bool]]], k: int) -> float:
    ranks = [slow_rank(*ranking) for ranking in rankings]
    hits = [rank < k for rank in ranks if rank is not None]
    return sum(hits) / len(hits)


def slow_average_precision(distances: list[float], matches: list[bool]) -> float:
    return float(average_precision_score(matches, -np.array(distances))) if any(matches) else float("nan")


def slow_map(rankings: list[tuple[list[float], list[bool]]]) -> float:
    return float(np.nanmean([slow_average_precision(*ranking) for ranking in rankings]))


@st.composite
def tied_data(draw: st.DrawFn) -> Data:
    """Small whole numbers in few dimensions, and few labels: many ties and equal vectors, queries without positives."""
    dim = draw(st.integers(1, 3))
    counts = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    vectors = [draw(arrays.arrays(np.float32, (count, dim), elements=st.integers(-2, 2))) for count in counts]
    labels = [draw(arrays.arrays(np.int64, count, elements=st.integers(0, 3))) for count in counts]
    return vectors[0], labels[0], vectors[1], labels[1]


# All queries and items at once, and a few at a time with a ragged last block and tile.
SIZES = [BlockSizes(), BlockSizes(distances=150, cpu_items=7)]


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("self_match", [False, True])
def test_metrics_equal_the_slow_versions(metric: Metric, ties: bool, self_match: bool) -> None:
    data = random_data(41, 41, 6, ties=ties, seed=3)
    if self_match:
        data = (data[2], data[3], data[2], data[3])

    found = retrieval_metrics(*data, self_match=self_match, metric=metric)

    rankings = slow_rankings(data, self_match, metric)
    assert found.cmc1 == pytest.approx(slow_cmc(rankings, 1), abs=1e-12)
    assert found.cmc5 == pytest.approx(slow_cmc(rankings, 5), abs=1e-12)
    assert found.map == pytest.approx(slow_map(rankings), abs=1e-9)
    assert cmc(*data, self_match=self_match, metric=metric) == {1: found.cmc1, 5: found.cmc5}
    assert mean_average_precision(*data, self_match=self_match, metric=metric) == found.map


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("self_match", [False, True])
def test_each_query_scores_what_the_slow_versions_say_in_blocks_of_any_size(
    sizes: BlockSizes, metric: Metric, ties: bool, self_match: bool
) -> None:
    data = random_data(41, 41, 6, ties=ties, seed=3)
    if self_match:
        data = (data[2], data[3], data[2], data[3])

    found = query_metrics(*data, self_match=self_match, metric=metric, sizes=sizes)

    check_each_query(found, data, self_match, metric)


@settings(deadline=None)
@given(data=tied_data(), self_match=st.booleans(), metric=st.sampled_from(["l2", "cosine", "ip"]))
def test_each_query_scores_what_the_slow_versions_say_whatever_ties(
    data: Data, self_match: bool, metric: Metric
) -> None:
    if self_match:
        data = (data[2], data[3], data[2], data[3])

    found = query_metrics(*data, self_match=self_match, metric=metric)

    check_each_query(found, data, self_match, metric)


def check_each_query(found: RetrievalPerQuery, data: Data, self_match: bool, metric: Metric) -> None:
    rankings = slow_rankings(data, self_match, metric)
    ranks = [slow_rank(*ranking) for ranking in rankings]
    assert found.first_match_ranks.tolist() == [len(data[2]) if rank is None else rank for rank in ranks]
    expected = [slow_average_precision(*ranking) for ranking in rankings]
    np.testing.assert_allclose(found.average_precisions, expected, rtol=1e-12)


@pytest.mark.parametrize(("queries", "items", "classes"), [(1, 1, 1), (1, 30, 4), (30, 2, 2), (25, 60, 40)])
def test_metrics_equal_the_slow_versions_at_the_edges(queries: int, items: int, classes: int) -> None:
    data = random_data(queries, items, classes, ties=True, seed=queries + items)

    found = retrieval_metrics(*data)

    rankings = slow_rankings(data, False, "l2")
    assert found.cmc1 == pytest.approx(slow_cmc(rankings, 1))
    assert found.cmc5 == pytest.approx(slow_cmc(rankings, 5))
    assert found.map == pytest.approx(slow_map(rankings))


def test_any_k_can_be_asked_for() -> None:
    data = random_data(20, 50, 10, ties=False, seed=5)

    found = cmc(*data, ks=(1, 2, 50, 1000))

    rankings = slow_rankings(data, False, "l2")
    assert found == {k: pytest.approx(slow_cmc(rankings, k)) for k in (1, 2, 50, 1000)}
    assert found[1000] == 1.0


def test_only_the_own_row_is_removed_not_its_duplicates() -> None:
    vectors = np.zeros((3, 2), np.float32)
    labels = np.array([0, 0, 1])

    ranks = first_match_ranks(vectors, labels, vectors, labels, self_match=True)

    assert ranks.tolist() == [0, 0, 3]


def test_queries_without_a_positive_count_in_no_mean() -> None:
    query, gallery = np.array([[0.0], [0.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    data = query, np.array([7, 9]), gallery, np.array([7, 8])

    found, each = retrieval_metrics(*data), query_metrics(*data)

    assert (found.cmc1, found.map) == (1.0, 1.0)
    assert each.first_match_ranks.tolist() == [0, 2]
    np.testing.assert_array_equal(each.average_precisions, [1.0, np.nan])


def test_the_only_item_of_a_class_has_no_positive_in_a_self_match() -> None:
    vectors = np.array([[0.0], [1.0], [5.0]], np.float32)
    labels = np.array([3, 3, 4])

    found = query_metrics(vectors, labels, vectors, labels, self_match=True)

    assert found.first_match_ranks.tolist() == [0, 0, 3]
    np.testing.assert_array_equal(found.average_precisions, [1.0, 1.0, np.nan])


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("among_them", [False, True])
def test_equal_vectors_tie_wherever_they_stand_in_a_large_gallery(metric: Metric, among_them: bool) -> None:
    generator = np.random.default_rng(0)
    one = generator.standard_normal((1, 64)).astype(np.float32)
    gallery = np.repeat(one, 1003, axis=0)
    labels = np.array([0, *[1] * 1001, 0])
    queries = np.repeat(one, 3, axis=0) if among_them else generator.standard_normal((3, 64)).astype(np.float32)

    found = query_metrics(queries, np.zeros(3, int), gallery, labels, metric=metric)

    assert found.average_precisions == pytest.approx(2 / 1003)
    assert found.first_match_ranks.tolist() == [0, 0, 0]


def test_parallel_vectors_tie_by_cosine_though_their_norms_are_rounded() -> None:
    gallery = np.arange(1, 51, dtype=np.float32)[:, None] * np.array([1, 2, 3, 5], np.float32)
    queries = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)

    found = query_metrics(queries, np.zeros(20, int), gallery, (np.arange(50) < 49).astype(int), metric="cosine")

    assert found.first_match_ranks.tolist() == [49] * 20
    assert found.average_precisions == pytest.approx(1 / 50)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("relative_distance", "tie"), [(3e-7, True), (3e-6, False)])
def test_what_is_nearer_to_the_query_than_float64_can_tell_ties_with_its_copies(
    metric: Metric, relative_distance: float, tie: bool
) -> None:
    query = np.ones((1, 64), np.float32)
    near = query.copy()
    near[0, 5] += relative_distance * 8

    found = query_metrics(query, np.array([1]), np.concatenate([near, query]), np.array([0, 1]), metric=metric)

    assert found.first_match_ranks.tolist() == [1 if tie else 0]
    assert found.average_precisions.tolist() == [0.5 if tie else 1.0]


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
def test_the_unit_of_the_vectors_changes_nothing(metric: Metric, scale: float) -> None:
    query, query_labels, gallery, labels = random_data(20, 50, 4, ties=False, seed=1)

    found = query_metrics(query * np.float32(scale), query_labels, gallery * np.float32(scale), labels, metric=metric)

    expected = query_metrics(query, query_labels, gallery, labels, metric=metric)
    np.testing.assert_array_equal(found.first_match_ranks, expected.first_match_ranks)
    np.testing.assert_array_equal(found.average_precisions, expected.average_precisions)


def test_threads_change_neither_the_metrics_nor_torchs_setting() -> None:
    data, sizes = random_data(40, 30, 4, ties=True, seed=2), BlockSizes(distances=100)
    threads_before = torch.get_num_threads()

    try:
        torch.set_num_threads(1)
        alone = query_metrics(*data, sizes=sizes)
        torch.set_num_threads(3)
        together = query_metrics(*data, sizes=sizes)
        with ThreadPoolExecutor(1) as pool:
            threads_after = torch.get_num_threads(), pool.submit(torch.get_num_threads).result()
    finally:
        torch.set_num_threads(threads_before)

    assert threads_after == (3, 3)
    np.testing.assert_array_equal(together.first_match_ranks, alone.first_match_ranks)
    np.testing.assert_array_equal(together.average_precisions, alone.average_precisions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("self_match", [False, True])
def test_a_gpu_finds_the_same(self_match: bool) -> None:
    data = random_data(300, 300, 6, ties=True, seed=4)

    cpu, gpu = (query_metrics(*data, self_match=self_match, device=device) for device in ("cpu", "cuda"))

    np.testing.assert_array_equal(gpu.first_match_ranks, cpu.first_match_ranks)
    np.testing.assert_allclose(gpu.average_precisions, cpu.average_precisions, rtol=1e-12)


@pytest.mark.parametrize(("queries", "items"), [(0, 3), (3, 0), (0, 0)])
def test_without_queries_or_items_there_is_nothing_to_score(queries: int, items: int) -> None:
    found = query_metrics(*random_data(queries, items, 2, ties=False, seed=0))

    assert found.first_match_ranks.tolist() == [0] * queries
    np.testing.assert_array_equal(found.average_precisions, [np.nan] * queries)


@pytest.mark.parametrize("function", [retrieval_metrics, cmc, mean_average_precision])
def test_no_query_with_a_positive_is_an_error(function: Callable[..., Any]) -> None:
    vectors = np.ones((2, 2), np.float32)

    with pytest.raises(ValueError, match="No query has an item of its label"):
        function(vectors, np.array([1, 2]), vectors, np.array([3, 4]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_values_that_are_not_finite_are_an_error(value: float, where: int) -> None:
    data = random_data(3, 3, 1, ties=False, seed=0)
    data[where][1, 2] = value

    with pytest.raises(ValueError, match="not finite"):
        cmc(*data)


def test_a_self_match_needs_as_many_queries_as_items() -> None:
    data = random_data(3, 4, 1, ties=False, seed=0)

    with pytest.raises(ValueError, match="the same items"):
        cmc(*data, self_match=True)


def test_a_vector_without_a_label_is_an_error() -> None:
    query, query_labels, gallery, labels = random_data(3, 4, 1, ties=False, seed=0)

    with pytest.raises(ValueError, match="one label for each"):
        cmc(query, query_labels[:-1], gallery, labels)
    with pytest.raises(ValueError, match="one label for each"):
        cmc(query, query_labels, gallery, labels[:-1])


def test_the_gap_closed_is_the_papers() -> None:
    assert gap_closed(46.5, 65.0, 68.1) == pytest.approx(0.856, abs=5e-4)  # ImageNet 500 -> 1k, table 1
    assert gap_closed(11.6, 18.1, 17.0) > 1
    assert np.isnan(gap_closed(0.5, 0.6, 0.5))


def test_flip_rates_explain_the_change_of_the_hits() -> None:
    before, after = np.array([True, True, False, False, True]), np.array([True, False, True, False, False])

    assert negative_flip_rate(before, after) == pytest.approx(0.4)
    assert positive_flip_rate(before, after) == pytest.approx(0.2)
    assert after.mean() - before.mean() == pytest.approx(0.2 - 0.4)


@pytest.mark.parametrize("count", [1, 7])
def test_errors_of_vectors_are_what_a_slow_count_says(count: int) -> None:
    found, expected = np.random.default_rng(count).standard_normal((2, count, 3)).astype(np.float32)
    found[0] = 0

    errors = vector_errors(found, expected)

    squared = [
        (float(a) - float(b)) ** 2 for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
    ]
    guess = [(float(b) - float(np.mean(expected[:, d]))) ** 2 for y in expected for d, b in enumerate(y)]
    cosines = [
        float(x @ y) / (math.hypot(*x) * math.hypot(*y)) if x.any() else 0.0
        for x, y in zip(found, expected, strict=True)
    ]
    means = [sum(values) / len(values) for values in (squared, guess, cosines)]
    assert [*errors.values()] == pytest.approx(means, abs=1e-6)


def test_linear_cka_equals_its_definition_by_gram_matrices() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal((30, 5)).astype(np.float32) + 3
    second = (first[:, :2] @ generator.standard_normal((2, 7)) + generator.standard_normal((30, 7))).astype(np.float32)
    centring = np.eye(30) - 1 / 30

    def hsic(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(np.trace(a @ a.T @ centring @ b @ b.T @ centring))

    wide, other = first.astype(np.float64), second.astype(np.float64)
    expected = hsic(wide, other) / np.sqrt(hsic(wide, wide) * hsic(other, other))

    assert linear_cka(first, second) == pytest.approx(expected, abs=1e-6)
    assert linear_cka(first, 5 * first @ np.linalg.qr(generator.standard_normal((5, 5)))[0]) == pytest.approx(1)
    assert linear_cka(first, np.ones((30, 2), np.float32)) == 0.0
