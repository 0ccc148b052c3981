"""Reading the images of a list in threads, a few ahead of who takes them one by one."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol


class Reader(Protocol):
    def read(self, uri: str) -> bytes: ...


class ReadAhead:
    """`take(position)` gives the image at a position of the list, or raises what reading it raised; meanwhile the next
    ones are read, `at_once` in all, so that as many are in memory. To be used from one thread, and closed."""

    def __init__(self, reader: Reader, uris: Sequence[str], at_once: int) -> None:
        self._reader = reader
        self._uris = uris
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="image-reads")
        self._reads: dict[int, Future[bytes]] = {}

    def take(self, position: int) -> bytes:
        """Return the image at this position; a second time, it is read again."""
        for ahead in range(position, min(position + self._at_once, len(self._uris))):
            if ahead not in self._reads:
                self._reads[ahead] = self._threads.submit(self._reader.read, self._uris[ahead])
        return self._reads.pop(position).result()

    def close(self) -> None:
        """Begin no further read, and do not wait for those that are under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)
