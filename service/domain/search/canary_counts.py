"""How many queries the candidates of canaries answered, and how many they failed: counted in each process, and added to
the upgrades' rows off the queries' path, in the thread of shadowed queries. What a process counted and had yet to write
is lost with it."""

import threading
from collections import Counter
from collections.abc import Callable

from sqlalchemy import update

from service.db import Database
from service.domain.judging.shadowed_queries import Job
from service.tables import Upgrade


class CanaryCounts:
    """What this process counts; safe to use from many threads. `run_later` does a job off the caller's path, and says
    whether it takes it; where it does not, the next query's job writes."""

    def __init__(self, database: Database, run_later: Callable[[Job], bool]) -> None:
        self._database = database
        self._run_later = run_later
        self._lock = threading.Lock()
        self._counted: Counter[tuple[int, bool]] = Counter()
        self._is_waiting = False  # the job that writes

    def note(self, upgrade_id: int, *, has_answered: bool) -> None:
        """Count a query that was the canary's; returns at once."""
        with self._lock:
            self._counted[upgrade_id, has_answered] += 1
            self._is_waiting = self._is_waiting or self._run_later(lambda: self._write)

    def _write(self) -> None:
        with self._lock:
            counted, self._counted = self._counted, Counter()
            self._is_waiting = False
        try:
            with self._database.session_scope() as session:
                for upgrade_id in sorted({upgrade_id for upgrade_id, _ in counted}):
                    session.execute(
                        update(Upgrade)
                        .where(Upgrade.id == upgrade_id)
                        .values(
                            canary_answered=Upgrade.canary_answered + counted[upgrade_id, True],
                            canary_failed=Upgrade.canary_failed + counted[upgrade_id, False],
                        )
                    )
        except BaseException:
            with self._lock:
                self._counted += counted
            raise
