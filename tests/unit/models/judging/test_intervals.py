"""Intervals against scipy, worked examples, and how often they hold what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from models.judging.flips import flips
from models.judging.intervals import (
    Draws,
    Hits,
    Interval,
    hit_difference,
    holm,
    newcombe,
    score_difference,
    wilson,
)
from models.statistics import paired_bootstrap

FEW_DRAWS = Draws(resamples=2_000)


def hits_of(both: int, lost: int, gained: int, neither: int) -> tuple[Hits, Hits]:
    counts = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@given(successes=st.integers(0, 50), more=st.integers(0, 50), confidence=st.sampled_from([0.9, 0.95, 0.999]))
def test_wilsons_interval_is_scipys(successes: int, more: int, confidence: float) -> None:
    n = successes + more
    if n == 0:
        with pytest.raises(ValueError, match="at least"):
            wilson(0, 0)
        return

    found = wilson(successes, n, confidence)

    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe (1998), table III: both, lost, gained, neither; method 10, first less second.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((30, 0, 0, 0), -0.1135, 0.1135),
    ],
)
def test_the_paired_interval_is_newcombes(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    found = newcombe(*hits_of(*cells))

    assert (-found.high, -found.low) == pytest.approx((low, high), abs=6e-4)


@given(cells=st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_the_paired_interval_mirrors_and_holds_its_value(cells: tuple[int, int, int, int]) -> None:
    before, after = hits_of(*cells)

    found, mirrored = newcombe(before, after), newcombe(after, before)

    assert found.value == pytest.approx((cells[2] - cells[1]) / sum(cells))
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_labels_that_gain_and_lose_together_widen_an_interval() -> None:
    labels = np.repeat(np.arange(40), 25)
    before, after = labels % 2 == 0, labels % 3 == 0

    alone = hit_difference(before, after, None, FEW_DRAWS)
    together = hit_difference(before, after, labels, FEW_DRAWS)

    drawn = paired_bootstrap(before, after, resamples=2_000, clusters=labels)
    assert together.low < drawn.low < alone.low - 0.1
    assert together.high > drawn.high > alone.high + 0.1
    assert together.detectable() > 3 * alone.detectable()


@pytest.mark.parametrize("labels", [np.zeros(30, np.int64), np.full(30, -1), np.arange(30)])
def test_one_label_and_no_labels_count_as_queries(labels: NDArray[np.int64]) -> None:
    before, after = hits_of(10, 5, 2, 13)

    assert hit_difference(before, after, labels) == newcombe(before, after)


def test_few_labels_give_no_interval_that_is_too_narrow() -> None:
    """Of four labels, each with a shift of its own around 0, the percentiles alone hold 0 too seldom."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    held = plain = 0
    for seed in range(300):
        scores = generator.standard_normal(4)[labels] + 0.1 * generator.standard_normal(200)
        found = score_difference(np.zeros(200), scores, labels, Draws(seed, 500))
        bare = paired_bootstrap(np.zeros(200), scores, resamples=500, clusters=labels)
        held += found.low <= 0 <= found.high
        plain += bare.low <= 0 <= bare.high

    assert plain / 300 < 0.88
    assert held / 300 > 0.92


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(1)
    n, trials = 2_000, 2_000
    detectable = newcombe(*hits_of(700, 250, 250, 800)).detectable()
    lost, gained = 0.125 - detectable / 2, 0.125 + detectable / 2

    drawn = generator.multinomial(n, [0.35, lost, gained, 0.4], trials)

    found = sum(newcombe(*hits_of(*cells)).low > 0 for cells in drawn.tolist())
    assert detectable == pytest.approx(0.031, abs=0.001)
    assert found / trials == pytest.approx(0.8, abs=0.03)


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holms_correction_is_its_definition(p_values: list[float]) -> None:
    found = holm(p_values)

    for index, p_value in enumerate(p_values):
        steps = [
            (len(p_values) - place) * other
            for place, other in enumerate(sorted(p_values))
            if other <= p_value and place <= sorted(p_values).index(p_value) + p_values.count(p_value) - 1
        ]
        assert found[index] <= min(1.0, max(steps)) + 1e-12
        assert found[index] >= p_values[index]
    assert sorted(found) == [found[index] for index in np.argsort(p_values, kind="stable")]
    assert (min(found, default=0) < 0.05) == (min(p_values, default=0) * len(p_values) < 0.05)


def test_flips_are_counted_with_their_rates_and_test() -> None:
    before, after = hits_of(50, 10, 4, 36)

    found = flips(before, after, None)

    assert found.negative == wilson(10, 100)
    assert found.positive == wilson(4, 100)
    assert found.lost_of_right == wilson(10, 60)
    assert found.difference == newcombe(before, after)
    assert found.p_value == pytest.approx(stats.binomtest(4, 14).pvalue)
    assert (found.before.value, found.after.value) == (0.6, 0.54)


def test_flips_without_a_hit_before_have_no_share_of_them() -> None:
    assert flips(np.zeros(5, bool), np.ones(5, bool), None).lost_of_right is None


def test_an_interval_of_scores_leaves_out_queries_without_one() -> None:
    before, after = np.array([0.1, np.nan, 0.4, 0.3]), np.array([0.2, np.nan, 0.3, 0.5])

    found = score_difference(before, after, None, FEW_DRAWS)

    drawn = paired_bootstrap(before, after, resamples=2_000)
    assert found == Interval(drawn.mean, drawn.low, drawn.high, 3)
