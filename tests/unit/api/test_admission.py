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
    async with admission.turn("g"):
        clock.now += seconds


def test_one_more_than_run_and_wait_is_refused_until_one_has_ended() -> None:
    async def scenario() -> None:
        admission = Admission(2, 1, ImageQueryMetrics())
        async with admission.turn("g"):
            async with AsyncExitStack() as second:
                await second.enter_async_context(admission.turn("g"))
                third = asyncio.create_task(take(admission, Clock(), 0))
                await asyncio.sleep(0)
                with pytest.raises(TooManyQueries):
                    admission.refuse_if_full("g")
                with pytest.raises(TooManyQueries):
                    await second.enter_async_context(admission.turn("g"))
                assert not third.done()
            await third
            admission.refuse_if_full("g")

    asyncio.run(scenario())


def test_one_that_gives_up_waiting_leaves_its_place() -> None:
    async def scenario() -> None:
        admission = Admission(1, 1, ImageQueryMetrics())
        async with admission.turn("g"):
            waiting = asyncio.create_task(take(admission, Clock(), 0))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            admission.refuse_if_full("g")
        await take(admission, Clock(), 0)

    asyncio.run(scenario())


async def hold_as_many_as_may(admission: Admission, gallery: str, stack: AsyncExitStack) -> int:
    """Ask for a gallery until a query has to wait, and hold the turns; return how many they are."""
    for held in range(1_000):
        turn = asyncio.create_task(stack.enter_async_context(admission.turn(gallery)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not turn.done():
            turn.cancel()
            await asyncio.wait([turn])
            return held
    raise AssertionError


def test_a_gallery_has_three_quarters_of_the_turns_at_most_and_the_next_one_of_the_rest() -> None:
    async def scenario() -> list[int]:
        admission = Admission(32, 1_000, ImageQueryMetrics())
        async with AsyncExitStack() as held:
            return [await hold_as_many_as_may(admission, f"heavy {number}", held) for number in range(4)]

    assert asyncio.run(scenario()) == [24, 6, 2, 0]


def test_a_gallery_that_fills_its_waiting_line_leaves_places_to_others() -> None:
    async def scenario() -> None:
        admission = Admission(4, 12, ImageQueryMetrics())
        async with AsyncExitStack() as held:
            assert await hold_as_many_as_may(admission, "heavy", held) == 3
            waiting = [asyncio.create_task(take_of(admission, "heavy")) for _ in range(9)]
            await asyncio.sleep(0)
            with pytest.raises(TooManyQueries, match="12 of them of this gallery"):
                admission.refuse_if_full("heavy")
            admission.refuse_if_full("other")
            await take_of(admission, "other")
            assert not any(each.done() for each in waiting)
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_turns_go_round_the_galleries_that_wait() -> None:
    async def scenario() -> list[str]:
        admission = Admission(1, 100, ImageQueryMetrics())
        answered: list[str] = []

        async def ask(gallery: str) -> None:
            async with admission.turn(gallery):
                answered.append(gallery)

        async with admission.turn("busy"):
            asked = [asyncio.create_task(ask(gallery)) for gallery in ["busy"] * 5 + ["calm"]]
            await asyncio.sleep(0)
        await asyncio.gather(*asked)
        return answered

    assert asyncio.run(scenario())[:2] == ["busy", "calm"]


def test_who_gives_up_just_as_the_turn_comes_passes_it_on() -> None:
    async def scenario() -> None:
        admission = Admission(1, 2, ImageQueryMetrics())
        async with AsyncExitStack() as first:
            await first.enter_async_context(admission.turn("g"))
            waiting = asyncio.create_task(take_of(admission, "g"))
            await asyncio.sleep(0)
            await first.aclose()  # grants the turn, which the task has yet to notice
            waiting.cancel()
            await asyncio.wait([waiting])
        async with asyncio.timeout(5):
            await take_of(admission, "g")

    asyncio.run(scenario())


async def take_of(admission: Admission, gallery: str) -> None:
    async with admission.turn(gallery):
        pass


def retry_after(admission: Admission) -> int:
    with pytest.raises(TooManyQueries) as refusal:
        admission.refuse_if_full("g")
    assert refusal.value.retry_after_seconds is not None
    return refusal.value.retry_after_seconds


def test_a_refused_query_is_told_when_those_before_it_will_have_been_answered() -> None:
    async def scenario() -> None:
        clock = Clock()
        admission = Admission(3, 0, ImageQueryMetrics(), clock)
        for _ in range(10):
            await take(admission, clock, 1.5)
        clock.now += 1_000_000  # idle meanwhile
        async with admission.turn("g"), admission.turn("g"), admission.turn("g"):
            assert retry_after(admission) == 5  # 3 x 1.5, rounded up
            clock.now += 4
            assert retry_after(admission) == 12  # as slow as nothing has ended for
            clock.now += 1_000
            assert retry_after(admission) == 60

    asyncio.run(scenario())


def test_a_refused_query_is_told_at_least_one_second() -> None:
    async def scenario() -> None:
        admission = Admission(1, 0, ImageQueryMetrics(), Clock())
        async with admission.turn("g"):
            assert retry_after(admission) == 1

    asyncio.run(scenario())
