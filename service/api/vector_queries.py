"""Queries by vectors that come together are asked together, as one query of many vectors.

A query that comes while few like it run is asked at once, in a thread. Those that come meanwhile wait in the event
loop, where they hold no thread, and are asked together when one ends: they share one look-up, one search and one change
of threads, and forty threads do not compete for the interpreter. So a batch grows with the load by itself, as it does
for networks (`service.networks.micro_batching`).
"""

import asyncio
import os
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fastapi import Response
from starlette.concurrency import run_in_threadpool

from service import identity
from service.domain.search.answers import Answer, Query
from service.errors import GalleryError

_THREADS = 32
# Batches of queries that are alike: FAISS runs beside the interpreter, and what runs in it gains nothing by more.
_AT_ONCE = min(8, len(os.sched_getaffinity(0)))
# Requests in a batch: whoever writes to an index waits for one to be searched.
_MOST_TOGETHER = 32
_MOST_VECTORS = 4  # of a request that others wait for

_Vectors = Sequence[Sequence[float]]
_Together = Callable[[Sequence[_Vectors]], list[Answer]]
Write = Callable[[Answer], Response]


class VectorSearch(Protocol):
    """What is asked, as `service.domain.search.queries.Search` has it."""

    def by_vectors(self, gallery: str, vectors: _Vectors, query: Query) -> Answer: ...

    def by_vectors_together(self, gallery: str, asked: Sequence[_Vectors], query: Query) -> list[Answer]: ...


@dataclass(eq=False)
class _Asked:
    """A request: its vectors, what writes its answer, the context that it came in, and what becomes of it."""

    vectors: _Vectors
    write: Write
    answered: asyncio.Future[Response]
    context: Context = field(default_factory=copy_context)
    outcome: Response | Exception | None = None


@dataclass(eq=False)
class _Line:
    """Requests that are alike: how many batches of them run, and which wait."""

    running: int = 0
    waiting: deque[_Asked] = field(default_factory=deque)


class VectorQueries:
    """Asks searches for many requests. Belongs to one event loop."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._at_once = at_once
        self._lines: defaultdict[Hashable, _Line] = defaultdict(_Line)
        self._threads = ThreadPoolExecutor(_THREADS, "vector-queries")

    def stop(self) -> None:
        """End the threads once they have answered."""
        self._threads.shutdown()

    async def answer(
        self, search: VectorSearch, gallery: str, vectors: _Vectors, query: Query, write: Write
    ) -> Response:
        """Return what `write` makes of the answer, in a thread; raise what the search raises of this request."""
        if not _may_wait(vectors, query):
            return await run_in_threadpool(lambda: write(search.by_vectors(gallery, vectors, query)))
        alike = identity.current.get(), gallery, query, frozenset(map(len, vectors))
        line = self._lines[alike]
        asked = _Asked(vectors, write, asyncio.get_running_loop().create_future())
        line.waiting.append(asked)
        if line.running < self._at_once:
            self._ask_waiting(partial(search.by_vectors_together, gallery, query=query), alike, line)
        return await asked.answered

    def _ask_waiting(self, search: _Together, alike: Hashable, line: _Line) -> None:
        """Ask for those who wait, in a thread; when they are answered, for those who came meanwhile."""
        batch = [line.waiting.popleft() for _ in range(min(len(line.waiting), _MOST_TOGETHER))]
        line.running += 1
        loop = asyncio.get_running_loop()

        def ask() -> None:
            _ask(search, batch)
            loop.call_soon_threadsafe(end)

        def end() -> None:
            line.running -= 1
            if line.waiting:
                self._ask_waiting(search, alike, line)
            elif not line.running:
                del self._lines[alike]
            for asked in batch:
                _hand_over(asked)

        self._threads.submit(batch[0].context.copy().run, ask)


def _ask(search: _Together, batch: Sequence[_Asked]) -> None:
    """Set the outcomes; where any one is refused, each is asked alone, so that it is refused alone."""
    try:
        answers = search([asked.vectors for asked in batch])
        for asked, answer in zip(batch, answers, strict=True):
            asked.outcome = asked.context.run(asked.write, answer)
    except Exception as error:  # noqa: BLE001 - raised to those who wait for it
        if len(batch) > 1 and isinstance(error, GalleryError) and error.status_code < 500:
            for asked in batch:
                asked.context.copy().run(_ask, search, [asked])
        else:
            for asked in batch:
                asked.outcome = error


def _may_wait(vectors: _Vectors, query: Query) -> bool:
    """Whether a request takes so little that others may wait for it."""
    is_plain = query.condition is None and query.exclude_id is None and not query.exclude_ids
    return is_plain and query.cursor is None and query.group_by is None and len(vectors) <= _MOST_VECTORS


def _hand_over(asked: _Asked) -> None:
    if asked.answered.done():
        return  # whoever asked has gone
    if isinstance(asked.outcome, Response):
        asked.answered.set_result(asked.outcome)
    else:
        assert asked.outcome is not None
        asked.answered.set_exception(asked.outcome)
