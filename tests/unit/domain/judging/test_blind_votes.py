"""The tally of blind votes, and on which side the next generation stands."""

import pytest

from service.domain.judging.blind_votes import Tally, next_is_left


@pytest.mark.parametrize(
    ("before", "after", "p_value"), [(0, 0, None), (1, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (8, 1, 0.0390625)]
)
def test_the_sign_test_is_two_sided_and_leaves_ties_out(before: int, after: int, p_value: float | None) -> None:
    assert Tally(before, after, neither=7).p_value == p_value
    assert Tally(after, before, neither=0).p_value == p_value


def test_either_side_is_drawn_as_often_and_always_the_same_for_a_query() -> None:
    drawn = [next_is_left(1, f"item-{place}") for place in range(1_000)]

    assert drawn == [next_is_left(1, f"item-{place}") for place in range(1_000)]
    assert 430 < sum(drawn) < 570
    assert drawn != [next_is_left(2, f"item-{place}") for place in range(1_000)]
