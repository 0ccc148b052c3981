"""What is done about a call until it is answered: sent, waited for, sent again, given up.

A generator that does no I/O says what comes next, and is told what came of it; a client does it. So the two clients,
with threads and with asyncio, have one set of rules.
"""

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from gallery_upgrade.core.answers import problem_of
from gallery_upgrade.core.calls import Call
from gallery_upgrade.errors import NotTheService, ServiceAway

_AGAIN = frozenset({429, 502, 503, 504})
_STILL_RUNS = "urn:gallery-upgrade:request-still-runs"
_NOT_FOUND = 404


@dataclass(frozen=True)
class Retries:
    """How long a call is tried: `deadline_seconds` from its first try to its last; the n-th pause is drawn from
    0 to `base_seconds` * 2^n, `most_seconds` at the longest, after what `Retry-After` asks for."""

    deadline_seconds: float = 120.0
    base_seconds: float = 0.2
    most_seconds: float = 20.0

    def pause(self, tries: int, retry_after_seconds: float, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after so many tries; `draw` gives a number from 0 to 1."""
        return retry_after_seconds + draw() * min(self.most_seconds, self.base_seconds * 2.0**tries)


NO_RETRIES = Retries(deadline_seconds=0.0)


@dataclass(frozen=True)
class Received:
    """An answer. The body of one that is streamed is empty, unless it is an error's."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def failed(self) -> bool:
        return self.status >= 400


@dataclass(frozen=True)
class Lost:
    """No answer came: `error` says why. `is_lasting` where none would come to another try."""

    error: Exception
    is_lasting: bool = False


@dataclass(frozen=True)
class Send:
    """Send the request (again)."""


@dataclass(frozen=True)
class Pause:
    """Wait so long."""

    seconds: float


Step = Send | Pause
Exchange = Generator[Step, Received | Lost | None, Received]


def exchange(call: Call[Any], retries: Retries, clock: Callable[[], float] = time.monotonic) -> Exchange:
    """Say how a call is carried out, and return the answer that succeeded.

    Raises `Problem` for an answer that is an error and will not change, `ServiceAway` where none came in time, and
    `NotTheService` where none would come however long it is tried.
    """
    began = clock()
    tries = 0
    was_lost = False
    while True:
        came = yield Send()
        if isinstance(came, Received):
            if not came.failed or (was_lost and call.method == "DELETE" and came.status == _NOT_FOUND):
                return came  # what is gone after an answer was lost, the first try deleted
            problem = problem_of(came.status, came.headers, came.body)
            error: Exception = problem
            again = came.status in _AGAIN or problem.type == _STILL_RUNS
            after_seconds = problem.retry_after_seconds or 0.0
        else:
            assert came is not None
            was_lost = True
            if came.is_lasting:
                raise NotTheService(f"There is no service at this address: {came.error}") from came.error
            error, again, after_seconds = came.error, True, 0.0

        pause_seconds = retries.pause(tries, after_seconds)
        if not again or clock() - began + pause_seconds > retries.deadline_seconds:
            if isinstance(came, Lost):
                raise ServiceAway(f"The service does not answer: {came.error}") from came.error
            raise error
        yield Pause(pause_seconds)
        tries += 1
