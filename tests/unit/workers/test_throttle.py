"""How long a worker rests, on a clock that the test moves."""

import pytest

from workers.throttle import Throttle


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("speed", "rest_seconds"), [(1.0, 0.0), (0.5, 3.0), (0.25, 9.0), (0.75, 1.0)])
def test_work_takes_its_share_of_the_time(speed: float, rest_seconds: float) -> None:
    throttle = Throttle(Clock())

    throttle.worked(1, 3.0)

    assert throttle.rest_seconds(1, speed) == pytest.approx(rest_seconds)


def test_a_rest_gets_shorter_as_time_passes_and_ends() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    throttle.worked(1, 2.0)

    rests = []
    for _ in range(4):
        rests.append(throttle.rest_seconds(1, 0.25))
        clock.now += 2.5

    assert rests == pytest.approx([6.0, 3.5, 1.0, 0.0])


def test_a_new_speed_counts_for_the_rest_that_has_begun() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    throttle.worked(1, 2.0)
    clock.now += 1.0

    rests = [throttle.rest_seconds(1, speed) for speed in (0.1, 0.5, 1.0)]

    assert rests == pytest.approx([17.0, 1.0, 0.0])


def test_each_upgrade_rests_for_its_own_work() -> None:
    throttle = Throttle(Clock())

    throttle.worked(1, 2.0)

    assert (throttle.rest_seconds(1, 0.5), throttle.rest_seconds(2, 0.5)) == (2.0, 0.0)


def test_the_last_batches_replace_what_was_there_before() -> None:
    throttle = Throttle(Clock())

    throttle.worked(1, 100.0)
    throttle.worked(1, 2.0)

    assert throttle.rest_seconds(1, 0.5) == 2.0
