"""Which requests may run: image queries are the ones that can take every thread of this process for long."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from math import ceil

from service.errors import TooManyRequests
from service.networks.micro_batching import ImageQueryMetrics

_LONGEST_RETRY_SECONDS = 60
_SHARE = 3
_MEAN_OF = 32  # intervals, each between the ends of two queries


class TooManyQueries(TooManyRequests):
    """As many image queries run or wait as may."""


class Admission:
    """Lets `at_once` image queries run, lets `waiting` more wait for their turn, and refuses the others at once.

    No gallery has all of it: one takes a turn, or a place to wait, while it holds less than `_SHARE` times what is left
    (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking, 1998). So one whose network computes
    for long has three quarters of the turns at most, and the next one such three quarters of the rest.

    A query that waits holds no thread, so other requests find one free as long as there are more than `at_once`.
    Belongs to one event loop. A gallery is any key: one of a tenant and a name.
    """

    def __init__(
        self, at_once: int, waiting: int, metrics: ImageQueryMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_once = at_once
        self._most = at_once + waiting
        self._metrics = metrics
        self._clock = clock
        self._running: Counter[Hashable] = Counter()
        self._admitted: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # who is first has waited longest for a grant
        self._ended = 0
        self._last_progress = 0.0
        self._interval_seconds = 0.0

    def refuse_if_full(self, gallery: Hashable) -> None:
        """Raise `TooManyQueries` (429) when no more of the gallery may wait."""
        if not _may_take(self._admitted, gallery, self._most):
            self._metrics.refused.inc()
            raise TooManyQueries(
                f"{self._admitted.total()} image queries run or wait already, {self._admitted[gallery]} of them of this"
                " gallery; try again later.",
                self._retry_after_seconds(),
            )

    @asynccontextmanager
    async def turn(self, gallery: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises `TooManyQueries` (429)."""
        self.refuse_if_full(gallery)
        came = self._clock()
        if not self._admitted.total():
            self._last_progress = came
        self._admitted[gallery] += 1
        self._metrics.admitted.inc()
        try:
            await self._take_turn(gallery)
            try:
                self._metrics.turn_wait_seconds.observe(self._clock() - came)
                yield
            finally:
                self._give_back(gallery)
        finally:
            _give(self._admitted, gallery)
            self._metrics.admitted.dec()
            self._note_progress()

    async def _take_turn(self, gallery: Hashable) -> None:
        line = self._waiting.setdefault(gallery, deque())
        granted = asyncio.get_running_loop().create_future()
        line.append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._give_back(gallery)  # it was granted just then
            else:
                line.remove(granted)
                if not line:
                    self._waiting.pop(gallery, None)
            raise

    def _give_back(self, gallery: Hashable) -> None:
        _give(self._running, gallery)
        self._grant()

    def _grant(self) -> None:
        """Give turns to who waits, one gallery after another, as long as any may have one."""
        gave = True
        while gave:
            gave = False
            for gallery in list(self._waiting):
                if _may_take(self._running, gallery, self._at_once):
                    line = self._waiting.pop(gallery)
                    line.popleft().set_result(None)
                    if line:
                        self._waiting[gallery] = line  # behind the others
                    self._running[gallery] += 1
                    gave = True

    def _note_progress(self) -> None:
        now = self._clock()
        seconds = now - self._last_progress
        self._ended += 1
        self._interval_seconds += (seconds - self._interval_seconds) / min(self._ended, _MEAN_OF)
        self._last_progress = now

    def _retry_after_seconds(self) -> int:
        """Return in how many seconds all that are admitted will have been answered, at the recent rate."""
        interval = max(self._interval_seconds, self._clock() - self._last_progress)
        return min(max(ceil(self._admitted.total() * interval), 1), _LONGEST_RETRY_SECONDS)


def _may_take(taken: Counter[Hashable], gallery: Hashable, most: int) -> bool:
    return taken[gallery] < _SHARE * (most - taken.total())


def _give(taken: Counter[Hashable], gallery: Hashable) -> None:
    taken[gallery] -= 1
    if not taken[gallery]:
        del taken[gallery]
