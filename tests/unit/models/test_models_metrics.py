"""Metrics against slow versions that rank one query at a time, and against scikit-learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models import metrics
from models.metrics import (
    Metric,
    cmc,
    first_match_ranks,
    gap_closed,
    linear_cka,
    mean_average_precision,
    negative_flip_rate,
    positive_flip_rate,
    retrieval_metrics,
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
        return float(np.float32(np.sqrt(((a - b) ** 2).sum())))
    if metric == "cosine":
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return float(np.float32(-(a @ b) / norms)) if norms else 0.0
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


def slow_cmc(rankings: list[tuple[list[float], list[bool]]], k: int) -> float:
    hits = []
    for distances, matches in rankings:
        nearest = sorted(range(len(distances)), key=lambda j: (distances[j], j))[:k]
        if any(matches):
            hits.append(any(matches[j] for j in nearest))
    return sum(hits) / len(hits)


def slow_map(rankings: list[tuple[list[float], list[bool]]]) -> float:
    scores = [average_precision_score(matches, -np.array(distances)) for distances, matches in rankings if any(matches)]
    return float(np.mean(scores))


@pytest.fixture(params=[8_000_000, 150])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of all queries, and blocks of a few with a ragged last one."""
    monkeypatch.setattr(metrics, "_BLOCK_DISTANCES", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("self_match", [False, True])
def test_metrics_equal_the_slow_versions(metric: Metric, ties: bool, self_match: bool) -> None:
    data = random_data(41, 41, 6, ties=ties and metric != "cosine", seed=3)
    if self_match:
        data = (data[2], data[3], data[2], data[3])

    found = retrieval_metrics(*data, self_match=self_match, metric=metric)

    rankings = slow_rankings(data, self_match, metric)
    assert found.cmc1 == pytest.approx(slow_cmc(rankings, 1), abs=1e-12)
    assert found.cmc5 == pytest.approx(slow_cmc(rankings, 5), abs=1e-12)
    assert found.map == pytest.approx(slow_map(rankings), abs=1e-9)
    assert cmc(*data, self_match=self_match, metric=metric) == {1: found.cmc1, 5: found.cmc5}
    assert mean_average_precision(*data, self_match=self_match, metric=metric) == found.map


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

    found = retrieval_metrics(query, np.array([7, 9]), gallery, np.array([7, 8]))

    assert (found.cmc1, found.map) == (1.0, 1.0)


def test_equal_vectors_tie_wherever_they_stand_in_a_large_gallery() -> None:
    generator = np.random.default_rng(0)
    one = generator.standard_normal((1, 64)).astype(np.float32)
    gallery = np.repeat(one, 1003, axis=0)
    labels = np.array([0, *[1] * 1001, 0])

    found = mean_average_precision(
        generator.standard_normal((3, 64)).astype(np.float32), np.zeros(3, int), gallery, labels
    )

    assert found == pytest.approx(2 / 1003)


@pytest.mark.parametrize("function", [retrieval_metrics, cmc, mean_average_precision])
def test_no_query_with_a_positive_is_an_error(function: Callable[..., Any]) -> None:
    vectors = np.ones((2, 2), np.float32)

    with pytest.raises(ValueError, match="No query has an item of its label"):
        function(vectors, np.array([1, 2]), vectors, np.array([3, 4]))


def test_values_that_are_not_finite_are_an_error() -> None:
    vectors = np.array([[np.nan], [1.0]], np.float32)

    with pytest.raises(ValueError, match="not finite"):
        cmc(vectors, np.zeros(2, int), vectors, np.zeros(2, int))


def test_a_self_match_needs_as_many_queries_as_items() -> None:
    data = random_data(3, 4, 1, ties=False, seed=0)

    with pytest.raises(ValueError, match="the same items"):
        cmc(*data, self_match=True)


def test_the_gap_closed_is_the_papers() -> None:
    assert gap_closed(46.5, 65.0, 68.1) == pytest.approx(0.856, abs=5e-4)  # ImageNet 500 -> 1k, table 1
    assert gap_closed(11.6, 18.1, 17.0) > 1
    assert np.isnan(gap_closed(0.5, 0.6, 0.5))


def test_flip_rates_explain_the_change_of_the_hits() -> None:
    before, after = np.array([True, True, False, False, True]), np.array([True, False, True, False, False])

    assert negative_flip_rate(before, after) == pytest.approx(0.4)
    assert positive_flip_rate(before, after) == pytest.approx(0.2)
    assert after.mean() - before.mean() == pytest.approx(0.2 - 0.4)


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
