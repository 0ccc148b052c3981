"""How often each gallery is searched in this process, and how long that takes: of the last minute, for people."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_SECONDS = 60.0
_KEPT = 2_000  # of each gallery: where more come in a minute, the last so many stand for it
_GALLERIES = 1_000


@dataclass(frozen=True)
class SearchRate:
    """Searches per second, and the 99th percentile of what they took in seconds, without the wire."""

    per_second: float
    p99_seconds: float


class SearchRates:
    """Notes searches as they end. Safe to use from many threads; memory is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ended: dict[int, deque[tuple[float, float]]] = {}  # by gallery, the longest ago searched first

    def note(self, gallery_id: int, seconds: float, searches: int = 1) -> None:
        """Note that searches of a gallery end now that were answered together in so many seconds."""
        now = self._clock()
        with self._lock:
            ended = self._ended.pop(gallery_id, None)
            if ended is None:
                ended = deque(maxlen=_KEPT)
                if len(self._ended) >= _GALLERIES:
                    del self._ended[next(iter(self._ended))]
            ended.extend([(now, seconds)] * searches)
            self._ended[gallery_id] = ended

    def of(self, gallery_id: int) -> SearchRate | None:
        """Return a gallery's rate; None where it was not searched in the last minute."""
        now = self._clock()
        with self._lock:
            ended = list(self._ended.get(gallery_id, ()))
        recent = [(at, seconds) for at, seconds in ended if now - at <= _SECONDS]
        if not recent:
            return None
        is_full = len(recent) == _KEPT
        took = sorted(seconds for _, seconds in recent)
        span = max(now - recent[0][0], 1e-3) if is_full else _SECONDS
        return SearchRate(len(recent) / span, took[math.ceil(0.99 * len(took)) - 1])
