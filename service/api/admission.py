"""Which requests may run: image queries are the ones that can take every thread of this process for long."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import ceil

from service.errors import TooManyRequests
from service.networks.micro_batching import ImageQueryMetrics

_LONGEST_RETRY_SECONDS = 60
_MEAN_OF = 32  # intervals, each between the ends of two queries


class TooManyQueries(TooManyRequests):
    """As many image queries run or wait as may."""


class Admission:
    """Lets `at_once` image queries run, lets `waiting` more wait for their turn, and refuses the others at once.

    A query that waits holds no thread, so other requests find one free as long as there are more than `at_once`.
    Belongs to one event loop.
    """

    def __init__(
        self, at_once: int, waiting: int, metrics: ImageQueryMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._metrics = metrics
        self._clock = clock
        self._admitted = 0
        self._ended = 0
        self._last_progress = 0.0
        self._interval_seconds = 0.0

    def refuse_if_full(self) -> None:
        """Raise `TooManyQueries` (429) when no more may wait."""
        if self._admitted >= self._most:
            self._metrics.refused.inc()
            raise TooManyQueries(
                f"{self._admitted} image queries run or wait already; try again later.", self._retry_after_seconds()
            )

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises `TooManyQueries` (429)."""
        self.refuse_if_full()
        came = self._clock()
        if not self._admitted:
            self._last_progress = came
        self._admitted += 1
        self._metrics.admitted.inc()
        try:
            async with self._turns:
                self._metrics.turn_wait_seconds.observe(self._clock() - came)
                yield
        finally:
            self._admitted -= 1
            self._metrics.admitted.dec()
            self._note_progress()

    def _note_progress(self) -> None:
        now = self._clock()
        seconds = now - self._last_progress
        self._ended += 1
        self._interval_seconds += (seconds - self._interval_seconds) / min(self._ended, _MEAN_OF)
        self._last_progress = now

    def _retry_after_seconds(self) -> int:
        """Return in how many seconds all that are admitted will have been answered, at the recent rate."""
        interval = max(self._interval_seconds, self._clock() - self._last_progress)
        return min(max(ceil(self._admitted * interval), 1), _LONGEST_RETRY_SECONDS)
