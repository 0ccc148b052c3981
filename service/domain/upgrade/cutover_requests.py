"""Waiting for a cutover: the worker does it, because the last remainder may need h; a client waits for the outcome."""

import time

from service.db import Database
from service.domain.upgrade.cutover import request_cutover, withdraw_cutover
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import State
from service.errors import Conflict, Unavailable
from service.queue import ADVANCE_UPGRADE, send_after_commit

_POLL_SECONDS = 0.05


class CutoverRefused(Conflict):
    """The worker found a reason why the generation cannot go live."""


class NoWorkerAnswered(Unavailable):
    """No worker cut over in time; nothing has changed."""


def cut_over_and_wait(database: Database, upgrade_id: int, wait_seconds: float) -> None:
    """Return once the upgrade is live.

    Raises `IllegalTransition` (409) when it is not ready, `CutoverRefused` (409) with the worker's sentence, and
    `NoWorkerAnswered` (503), after which the request is withdrawn.
    """
    with database.session_scope() as session:
        request_cutover(session, upgrade_id)
        send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    ends = time.monotonic() + wait_seconds
    while time.monotonic() < ends:
        with database.session_scope() as session:
            upgrade = get_upgrade(session, upgrade_id)
        if State(upgrade.state) in (State.LIVE, State.FINALIZED):
            return
        if State(upgrade.state) is not State.READY:
            raise CutoverRefused(upgrade.error or f"The upgrade is {upgrade.state} now.")
        time.sleep(_POLL_SECONDS)
    with database.session_scope() as session:
        upgrade = withdraw_cutover(session, upgrade_id)
    if State(upgrade.state) is not State.LIVE:
        raise NoWorkerAnswered(f"No worker cut the upgrade over within {wait_seconds:.0f} s; is one running?")
