"""Overlap, rank-biased overlap, own item first and hubs against slow versions that follow their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.judging.rankings import hubness, occurrences, overlap, own_first, rank_biased_overlap
from models.judging.search import NO_ID, Ids, Neighbours

RANKINGS = st.lists(st.integers(0, 12), unique=True, max_size=8)


def padded(ranking: list[int]) -> Ids:
    return np.array([ranking + [NO_ID] * (8 - len(ranking))])


def slow_rank_biased_overlap(first: list[int], second: list[int], p: float) -> float:
    """Webber et al. (2010), equation 32, depth by depth."""
    short, long = sorted((first, second), key=len)
    s, length = len(short), len(long)
    if length == 0:
        return 1.0

    def agreed(depth: int) -> int:
        return len(set(short[:depth]) & set(long[:depth]))

    total = sum(agreed(d) / d * p**d for d in range(1, length + 1))
    total += sum(agreed(s) * (d - s) / (s * d) * p**d for d in range(s + 1, length + 1)) if s else 0
    rest = (agreed(length) - agreed(s)) / length + (agreed(s) / s if s else 0)
    return (1 - p) / p * total + rest * p**length


@given(first=RANKINGS, second=RANKINGS)
def test_overlap_and_rank_biased_overlap_are_their_definitions(first: list[int], second: list[int]) -> None:
    found = overlap(padded(first), padded(second)), rank_biased_overlap(padded(first), padded(second))

    longer = max(len(first), len(second))
    assert found[0][0] == pytest.approx(len(set(first) & set(second)) / longer if longer else 1)
    assert found[1][0] == pytest.approx(slow_rank_biased_overlap(first, second, 0.9))


def test_equal_rankings_agree_whole_and_the_top_weighs_most() -> None:
    ranking = np.arange(10)[None]
    top_changed, end_changed = ranking.copy(), ranking.copy()
    top_changed[0, 0] = end_changed[0, 9] = 99

    assert rank_biased_overlap(ranking, ranking)[0] == pytest.approx(1)
    assert overlap(ranking, top_changed) == overlap(ranking, end_changed)
    assert rank_biased_overlap(ranking, top_changed)[0] < rank_biased_overlap(ranking, end_changed)[0]


def test_an_own_item_is_first_when_no_other_comes_before_it() -> None:
    others = Neighbours(np.array([[5, 6], [5, 6], [5, 6], [5, NO_ID]]), np.array([[1, 2]] * 3 + [[1, np.inf]], "f4"))
    own = np.array([0.5, 1, 1, np.inf], np.float32)
    ids = np.array([9, 9, 3, 9])

    assert own_first(own, ids, others, 1).tolist() == [True, False, True, False]
    assert own_first(own, ids, others, 2).tolist() == [True, True, True, False]


@given(answers=st.lists(st.integers(-1, 9), min_size=1, max_size=40))
def test_hubs_are_the_skewness_of_how_often_items_are_answered(answers: list[int]) -> None:
    given_ = np.array(answers)[:, None]

    counts = [answers.count(item) for item in range(10)]
    assert occurrences(given_, 10).tolist() == sorted(counts, reverse=True)
    expected = stats.skew(counts) if len(set(counts)) > 1 else 0.0
    assert hubness(given_, 10) == pytest.approx(expected)
