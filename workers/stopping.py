"""Whether somebody waits for work in flight to be given back."""

import threading
import time
from contextlib import suppress

from service.advisory_locks import AdvisoryLock, is_asked_for
from service.db import AWAY, Database

_LOOK_EVERY_SECONDS = 0.5


class StopAsked:
    """Whether somebody waits to pause or cancel what is worked on, holding its lock: then all of it here is given back.
    The database is asked at most twice a second, by whichever thread comes then."""

    def __init__(self, database: Database, lock: AdvisoryLock, id_: int) -> None:
        self._database = database
        self._lock = lock
        self._id = id_
        self._looking = threading.Lock()
        self._looked = time.monotonic()
        self._is_asked = False

    def __call__(self) -> bool:
        with self._looking:
            if not self._is_asked and time.monotonic() - self._looked >= _LOOK_EVERY_SECONDS:
                self._looked = time.monotonic()
                # Where it is away, whoever waits has lost its connection, too.
                with suppress(*AWAY), self._database.reading() as connection:
                    self._is_asked = is_asked_for(connection, self._lock, self._id)
            return self._is_asked
