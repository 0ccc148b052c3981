"""All who watch the same row share one look at it, and no more may watch than a process can bear."""

import asyncio
from functools import partial

import pytest

from service.api.event_streams import EventStreams, TooManyStreams


def test_who_looks_at_the_same_at_the_same_time_shares_a_look() -> None:
    looks: list[str] = []

    def read(name: str) -> str:
        looks.append(name)
        return name

    async def watch() -> list[str]:
        streams = EventStreams(most=10, look_every_seconds=60)
        names = ["a"] * 50 + ["b"] * 50
        return await asyncio.gather(*(streams.look(name, partial(read, name)) for name in names))

    assert asyncio.run(watch()) == ["a"] * 50 + ["b"] * 50
    assert sorted(looks) == ["a", "b"]


def test_a_look_is_taken_anew_when_its_time_is_over() -> None:
    async def watch() -> list[int]:
        streams, seen = EventStreams(most=10, look_every_seconds=0), iter(range(10))
        return [await streams.look("a", lambda: next(seen)) for _ in range(3)]

    assert asyncio.run(watch()) == [0, 1, 2]


def test_who_goes_away_takes_nobodys_look_with_him() -> None:
    async def watch() -> str:
        streams, began = EventStreams(most=10, look_every_seconds=60), asyncio.Event()
        loop = asyncio.get_running_loop()

        def read() -> str:
            loop.call_soon_threadsafe(began.set)
            asyncio.run(asyncio.sleep(0.05))
            return "seen"

        first = asyncio.ensure_future(streams.look("a", read))
        second = asyncio.ensure_future(streams.look("a", read))
        await began.wait()
        first.cancel()
        return await second

    assert asyncio.run(watch()) == "seen"


def test_a_look_that_failed_is_taken_anew_at_once() -> None:
    failures = iter([ValueError("away")])

    def read() -> str:
        for failure in failures:
            raise failure
        return "seen"

    async def watch() -> str:
        streams = EventStreams(most=10, look_every_seconds=60)
        with pytest.raises(ValueError, match="away"):
            await streams.look("a", read)
        return await streams.look("a", read)

    assert asyncio.run(watch()) == "seen"


def test_more_streams_than_may_be_are_refused_until_one_ends() -> None:
    async def open_streams() -> None:
        streams = EventStreams(most=2, look_every_seconds=60)
        opened = [streams.opened() for _ in range(3)]
        await anext(opened[0])
        await anext(opened[1])
        with pytest.raises(TooManyStreams, match="2 streams of events are open"):
            await anext(opened[2])

        await anext(opened[0], None)
        await anext(streams.opened())

    asyncio.run(open_streams())
