"""How many image queries run, wait and are refused, and when a refused one is told to come back."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.api.admission import Admission, TooManyQueries
from service.networks.micro_batching import ImageQueryMetrics


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def take(admission: Admission, clock: Clock, seconds: float) -> None:
    async with admission.turn():
        clock.now += seconds


def test_one_more_than_run_and_wait_is_refused_until_one_has_ended() -> None:
    async def scenario() -> None:
        admission = Admission(2, 1, ImageQueryMetrics())
        async with admission.turn():
            async with AsyncExitStack() as second:
                await second.enter_async_context(admission.turn())
                third = asyncio.create_task(take(admission, Clock(), 0))
                await asyncio.sleep(0)
                with pytest.raises(TooManyQueries):
                    admission.refuse_if_full()
                with pytest.raises(TooManyQueries):
                    await second.enter_async_context(admission.turn())
                assert not third.done()
            await third
            admission.refuse_if_full()

    asyncio.run(scenario())


def test_one_that_gives_up_waiting_leaves_its_place() -> None:
    async def scenario() -> None:
        admission = Admission(1, 1, ImageQueryMetrics())
        async with admission.turn():
            waiting = asyncio.create_task(take(admission, Clock(), 0))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            admission.refuse_if_full()
        await take(admission, Clock(), 0)

    asyncio.run(scenario())


def retry_after(admission: Admission) -> int:
    with pytest.raises(TooManyQueries) as refusal:
        admission.refuse_if_full()
    assert refusal.value.retry_after_seconds is not None
    return refusal.value.retry_after_seconds


def test_a_refused_query_is_told_when_those_before_it_will_have_been_answered() -> None:
    async def scenario() -> None:
        clock = Clock()
        admission = Admission(3, 0, ImageQueryMetrics(), clock)
        for _ in range(10):
            await take(admission, clock, 1.5)
        clock.now += 1_000_000  # idle meanwhile
        async with admission.turn(), admission.turn(), admission.turn():
            assert retry_after(admission) == 5  # 3 x 1.5, rounded up
            clock.now += 4
            assert retry_after(admission) == 12  # as slow as nothing has ended for
            clock.now += 1_000
            assert retry_after(admission) == 60

    asyncio.run(scenario())


def test_a_refused_query_is_told_at_least_one_second() -> None:
    async def scenario() -> None:
        admission = Admission(1, 0, ImageQueryMetrics(), Clock())
        async with admission.turn():
            assert retry_after(admission) == 1

    asyncio.run(scenario())
