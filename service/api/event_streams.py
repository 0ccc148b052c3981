"""Streams of server-sent events: how many there may be at once, and one look at a row for all who watch it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, cast

from fastapi import Depends, Request
from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.errors import TooManyRequests

if TYPE_CHECKING:
    from service.domain.phases import Phase

_Seen = TypeVar("_Seen")
_RETRY_SECONDS = 10


class TooManyStreams(TooManyRequests):
    """As many streams are open as may be."""


class Change(Protocol):
    """A change of state, or with a `note` of something else, with the id that a client goes on from."""

    @property
    def id(self) -> int: ...

    @property
    def state(self) -> str: ...

    @property
    def error(self) -> str | None: ...

    @property
    def note(self) -> str | None: ...

    @property
    def at(self) -> datetime: ...


class News(Protocol):
    """What happened; `ended` when there will be no more."""

    @property
    def changes(self) -> Sequence[Change]: ...

    @property
    def progress(self) -> "Mapping[str, Phase]": ...

    @property
    def ended(self) -> bool: ...


@dataclass(frozen=True)
class _Look:
    began: float
    seen: asyncio.Task[Any]


class EventStreams:
    """The open streams of a process; to be used on its event loop alone."""

    def __init__(self, most: int, look_every_seconds: float) -> None:
        self.look_every_seconds = look_every_seconds
        self._most = most
        self._open = 0
        self._looks: dict[Hashable, _Look] = {}

    async def opened(self) -> AsyncIterator["EventStreams"]:
        """Count a stream while it is open. Raises `TooManyStreams` (429)."""
        if self._open >= self._most:
            raise TooManyStreams(
                f"{self._open} streams of events are open, as many as may be: ask for the resource itself meanwhile.",
                _RETRY_SECONDS,
            )
        self._open += 1
        try:
            yield self
        finally:
            self._open -= 1

    async def look(self, key: Hashable, read: Callable[[], _Seen]) -> _Seen:
        """Return what `read` gives, in a thread. Whoever looks at the same within `look_every_seconds` shares it."""
        now = time.monotonic()
        known = self._looks.get(key)
        if known is None or now - known.began >= self.look_every_seconds:
            self._looks = {
                other: look for other, look in self._looks.items() if now - look.began < self.look_every_seconds
            }
            self._looks[key] = known = _Look(now, asyncio.ensure_future(run_in_threadpool(read)))
        try:
            return cast("_Seen", await asyncio.shield(known.seen))
        except Exception:
            if self._looks.get(key) is known:  # whoever looks next tries again
                del self._looks[key]
            raise


async def _open_stream(request: Request) -> AsyncIterator[EventStreams]:
    streams: EventStreams = request.app.state.parts.event_streams
    async for opened in streams.opened():
        yield opened


async def stream_news(
    stream: EventStreams, key: Hashable, look: Callable[[], News], last_event_id: int
) -> AsyncIterator[ServerSentEvent]:
    """Give the changes of state after `last_event_id` (`state`, or `note`, each with an id) and the progress
    (`progress`, whenever it changed); ends when the work has ended. `look` returns all that happened, and is shared by
    all who give the same `key`."""
    shown: Mapping[str, Phase] | None = None
    while True:
        news = await stream.look(key, look)
        for change in news.changes:
            if change.id <= last_event_id:
                continue
            last_event_id = change.id
            data = {"state": change.state, "error": change.error, "at": change.at}
            if change.note is None:
                yield ServerSentEvent(event="state", id=str(change.id), data=data)
            else:
                yield ServerSentEvent(event="note", id=str(change.id), data={**data, "note": change.note})
        if news.progress != shown:
            shown = news.progress
            yield ServerSentEvent(event="progress", data=shown)
        if news.ended:
            return
        await asyncio.sleep(stream.look_every_seconds)


EventStream = Annotated[EventStreams, Depends(_open_stream)]
