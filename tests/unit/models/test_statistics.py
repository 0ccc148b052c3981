"""Paired comparisons against closed forms and enumeration."""

from fractions import Fraction
from itertools import product
from math import comb
from statistics import NormalDist, correlation

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.statistics import DifferenceInterval, mcnemar_test, paired_bootstrap, reliability


def test_the_interval_of_many_queries_is_the_normal_distributions() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(4000)
    after = before + 0.02 + 0.1 * generator.standard_normal(4000)

    found = paired_bootstrap(before, after, confidence=0.9)

    mean, error = (after - before).mean(), (after - before).std() / np.sqrt(4000)
    reach = NormalDist().inv_cdf(0.95) * error
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach), abs=0.05 * error)


def test_the_interval_of_few_queries_is_that_of_all_their_resamples() -> None:
    before, after = np.array([0.5, 0.2, 0.9, 0.4]), np.array([0.6, 0.9, 0.8, 0.4])

    found = paired_bootstrap(before, after, confidence=0.8, resamples=200_000)

    all_means = [np.mean(drawn) for drawn in product(after - before, repeat=4)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(all_means, [0.1, 0.9])), abs=1e-9)


def test_the_pairing_counts_not_how_the_queries_differ_among_themselves() -> None:
    before = np.random.default_rng(0).random(50)

    found = paired_bootstrap(before, before + 0.25)

    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_queries_of_a_cluster_are_drawn_together() -> None:
    before, after = np.zeros(7), np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.5, np.nan])
    before[6] = np.nan
    labels = np.array([4, 4, 4, 9, 9, 2, 2])

    found = paired_bootstrap(before, after, confidence=0.8, resamples=200_000, clusters=labels)

    sums, sizes = (3.0, 0.0, 0.5), (3, 2, 1)
    all_means = [sum(sums[c] for c in drawn) / sum(sizes[c] for c in drawn) for drawn in product(range(3), repeat=3)]
    assert found.mean == pytest.approx(3.5 / 6)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(all_means, [0.1, 0.9])), abs=1e-9)


def test_each_query_as_its_own_cluster_is_no_clustering() -> None:
    before, after = np.random.default_rng(1).random((2, 30))

    assert paired_bootstrap(before, after, clusters=np.arange(30)) == paired_bootstrap(before, after)


def test_drawing_in_parts_is_still_as_many_resamples() -> None:
    before, after = np.random.default_rng(1).random((2, 30))
    whole = paired_bootstrap(before, after, resamples=1001)

    in_parts = paired_bootstrap(before, after, resamples=1001, draws_at_once=7 * 30)

    assert in_parts == whole


def test_hits_can_be_compared_and_seeds_repeat() -> None:
    before, after = np.array([True, False, False]), np.array([True, True, False])

    found = paired_bootstrap(before, after, seed=5)

    assert found == paired_bootstrap(before, after, seed=5)
    assert found.mean == pytest.approx(1 / 3)


def test_queries_without_a_positive_are_left_out() -> None:
    found = paired_bootstrap([0.5, np.nan, 0.5], [1.0, np.nan, 1.0])

    assert found == DifferenceInterval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([0.5], [0.5, 0.6], "same queries"),
        ([0.5, np.nan], [0.5, 0.6], "same queries"),
        ([np.nan], [np.nan], "No query has"),
        ([], [], "No query has"),
    ],
)
def test_scores_that_cannot_be_compared_are_an_error(before: list[float], after: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(before, after)


@settings(deadline=None)
@given(lost=st.integers(0, 300), gained=st.integers(0, 300))
def test_mcnemars_test_is_twice_the_smaller_binomial_tail_of_the_flips(lost: int, gained: int) -> None:
    before = np.array([True] * lost + [False] * gained + [True, False])
    after = np.array([False] * lost + [True] * gained + [True, False])

    found = mcnemar_test(before, after)

    assert (found.lost, found.gained) == (lost, gained)
    flips = lost + gained
    tail = sum(Fraction(comb(flips, count), 2**flips) for count in range(min(lost, gained) + 1))
    assert found.p_value == float(min(Fraction(1), 2 * tail))


def test_mcnemars_test_of_flips_in_one_direction_is_a_power_of_two() -> None:
    hits = np.ones(10, bool)

    assert mcnemar_test(~hits, hits).p_value == 2 * 0.5**10
    assert mcnemar_test(hits, hits).p_value == 1.0


def test_mcnemars_test_takes_tens_of_thousands_of_flips() -> None:
    before = np.arange(40_000) < 20_500

    found = mcnemar_test(before, ~before)

    # The normal distribution's tail, with half a flip for the step from counts to a continuum.
    assert found.p_value == pytest.approx(2 * NormalDist(20_000, 100).cdf(19_500.5), rel=2e-2)


def test_hits_of_other_queries_are_an_error() -> None:
    with pytest.raises(ValueError, match="same queries"):
        mcnemar_test(np.ones(2, bool), np.ones(3, bool))


def test_expected_errors_are_compared_in_groups_from_the_least_on() -> None:
    found = reliability(np.array([3, 1, 2, 4, 5], np.float32), np.array([30, 10, 20, 50, 40], np.float32), groups=2)

    assert found.expected == (2.0, 4.5)
    assert found.true == (20.0, 45.0)
    assert found.rank_correlation == pytest.approx(0.9)  # 1 - 6·Σd²/(n·(n² - 1))


def test_fewer_items_than_groups_make_fewer_and_none_is_refused() -> None:
    found = reliability(np.array([2, 1], np.float32), np.array([1, 1], np.float32))

    assert (found.expected, found.true) == ((1.0, 2.0), (1.0, 1.0))
    assert np.isnan(found.rank_correlation)
    with pytest.raises(ValueError, match="no item"):
        reliability(np.array([], np.float32), np.array([], np.float32))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_rank_correlation_is_that_of_ranks_that_equals_share(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, np.float32).T

    found = reliability(first, second).rank_correlation

    def slow_ranks(values: list[float]) -> list[float]:
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values
        ]

    ranks = [slow_ranks(values.tolist()) for values in (first, second)]
    if any(len(set(values)) == 1 for values in ranks):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(correlation(*ranks))
