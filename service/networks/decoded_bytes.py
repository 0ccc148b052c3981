"""How many bytes of decoded images a process holds at a time, whatever the requests are that they came with."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import TooManyRequests

_RETRY_AFTER_SECONDS = 5


class ImagesTooBusy(TooManyRequests):
    """Other images and tables took all the memory for decoded ones, for longer than a request waits."""


class DecodedBytes:
    """Grants memory for decoded images and tables, up to `most` bytes at a time, in the order in which it is asked for.

    Safe to use from many threads. Who holds some asks for no more, so nobody waits for another in a circle.
    """

    def __init__(self, most: int, wait_seconds: float) -> None:
        self.most = most
        self._wait_seconds = wait_seconds
        self._held = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """How many wait for memory."""
        return len(self._queue)

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold so many bytes, or all there are. Raises `ImagesTooBusy` (429) when they do not come free in time."""
        count = min(count, self.most)
        with self._changed:
            self._wait_for(count)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def _wait_for(self, count: int) -> None:
        ticket = object()
        self._queue.append(ticket)
        try:
            if not self._changed.wait_for(lambda: self._is_next(ticket, count), self._wait_seconds):
                raise ImagesTooBusy(
                    "Other images or tables are being decoded, and there is no memory for this one; try again later.",
                    _RETRY_AFTER_SECONDS,
                )
        finally:
            self._queue.remove(ticket)
            self._changed.notify_all()

    def _is_next(self, ticket: object, count: int) -> bool:
        return self._queue[0] is ticket and self._held + count <= self.most
