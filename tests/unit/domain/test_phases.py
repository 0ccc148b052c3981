import pytest

from service.domain.phases import Phase, phase_of, rate_of


def test_a_rate_is_a_count_per_second_and_unknown_where_no_time_has_passed() -> None:
    rates = [rate_of(6, 2.0), rate_of(0, 2.0), rate_of(6, 0.0)]

    assert rates == [3.0, 0.0, None]


def test_an_estimate_is_what_is_left_less_the_time_since_the_count() -> None:
    phase = phase_of(4, 10, "items", 2.0, since_seconds=1.0)

    assert phase == Phase(4, 10, "items", 2.0, 2.0)


def test_an_estimate_is_never_below_zero() -> None:
    phase = phase_of(4, 10, "items", 2.0, since_seconds=99.0)

    assert phase.eta_seconds == 0.0


@pytest.mark.parametrize(("rate", "moving"), [(None, True), (0.0, True), (2.0, False)])
def test_nothing_is_estimated_of_what_rests_or_has_no_rate(rate: float | None, moving: bool) -> None:
    phase = phase_of(4, 10, "items", rate, moving=moving)

    assert phase.eta_seconds is None


@pytest.mark.parametrize(("done", "total"), [(10, 10), (11, 10), (0, 0)])
def test_what_is_done_has_no_time_left_even_where_it_rests(done: int, total: int) -> None:
    phase = phase_of(done, total, "items", moving=False)

    assert phase.eta_seconds == 0.0
