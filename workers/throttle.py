"""The live throttle: after some batches, a worker rests in proportion to the time that they took."""

import time
from collections.abc import Callable


class Throttle:
    """How long this process still rests, per upgrade or job; the speed is read anew every time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[int, tuple[float, float]] = {}

    def worked(self, id_: int, seconds: float) -> None:
        """Remember that batches took `seconds` and ended now."""
        self._last[id_] = (self._clock(), seconds)

    def rest_seconds(self, id_: int, speed: float) -> float:
        """Return the seconds still to rest before the next batches, so that work takes `speed` of the time."""
        ended, seconds = self._last.get(id_, (0.0, 0.0))
        return max(0.0, ended + seconds * (1 / speed - 1) - self._clock())
