"""What is said of the searches of the last minute."""

import pytest

from service.domain.search.rates import SearchRate, SearchRates


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_searches_of_the_last_minute_are_counted_and_the_slowest_hundredth_is_named(clock: Clock) -> None:
    rates = SearchRates(clock)
    for number in range(1, 121):
        clock.now += 0.25
        rates.note(1, number / 1_000)

    assert rates.of(1) == SearchRate(2.0, 0.119)
    assert rates.of(2) is None


def test_searches_that_are_answered_together_are_counted_each(clock: Clock) -> None:
    rates = SearchRates(clock)
    rates.note(1, 0.02, searches=118)
    rates.note(1, 0.04, searches=2)

    assert rates.of(1) == SearchRate(2.0, 0.04)


def test_what_is_older_counts_no_more(clock: Clock) -> None:
    rates = SearchRates(clock)
    rates.note(1, 5.0)
    clock.now += 59
    rates.note(1, 0.01)
    clock.now += 2

    found = rates.of(1)
    clock.now += 60

    assert found == SearchRate(1 / 60, 0.01)
    assert rates.of(1) is None


def test_many_searches_are_counted_over_the_time_that_the_kept_ones_took(clock: Clock) -> None:
    rates = SearchRates(clock)
    for _ in range(10_000):
        clock.now += 0.001
        rates.note(1, 0.5)

    found = rates.of(1)

    assert found is not None
    assert found.per_second == pytest.approx(1_000, rel=0.01)


def test_of_very_many_galleries_those_searched_last_are_known(clock: Clock) -> None:
    rates = SearchRates(clock)
    for gallery_id in range(1_001):
        rates.note(gallery_id, 0.1)
        rates.note(0, 0.1)

    assert rates.of(0) is not None
    assert rates.of(1) is None
    assert rates.of(1_000) is not None
