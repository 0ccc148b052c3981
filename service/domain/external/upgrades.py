"""Upgrades of other stores: looking at one, and the functions that change the state of one."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from service import identity, logs
from service.access.tenancy import own
from service.advisory_locks import AdvisoryLock, hold
from service.domain.batch_state import BatchAction
from service.domain.claims import change_rows
from service.domain.external_state import OPEN, WORKING, ExternalAction, ExternalState, advance
from service.domain.steering import move, throttle
from service.errors import Conflict, NotFound
from service.identity import NOBODY
from service.queue import ADVANCE_EXTERNAL, send_after_commit
from service.tables import ExternalBatch, ExternalEvent, ExternalUpgrade

events = logs.Events(__name__)

_ENDED = (ExternalState.CANCELLED, ExternalState.ROLLED_BACK, ExternalState.FINALIZED)


class UnknownExternalUpgrade(NotFound):
    """No upgrade of another store has this id."""


class ExternalUpgradeEnded(Conflict):
    """The upgrade is not open any more."""


def get_external_upgrade(session: Session, upgrade_id: int) -> ExternalUpgrade:
    """Return the upgrade as it is now, or raise `UnknownExternalUpgrade` (404)."""
    upgrade = session.get(ExternalUpgrade, upgrade_id, populate_existing=True)
    who = identity.current.get()
    if upgrade is None or (who is not NOBODY and upgrade.tenant != who.tenant):
        raise UnknownExternalUpgrade(f"There is no external upgrade {upgrade_id}.")
    return upgrade


def get_open_external_upgrade(session: Session, upgrade_id: int) -> ExternalUpgrade:
    """Return an upgrade that is open, or raise `ExternalUpgradeEnded` (409) or `UnknownExternalUpgrade` (404)."""
    upgrade = get_external_upgrade(session, upgrade_id)
    if upgrade.state not in OPEN:
        raise ExternalUpgradeEnded(
            f"External upgrade {upgrade_id} is {upgrade.state}: there is nothing left to judge or to throttle."
        )
    return upgrade


def list_external_upgrades(session: Session, after_id: int, limit: int) -> list[ExternalUpgrade]:
    """Return up to `limit` upgrades of the tenant with ids above `after_id`, by id."""
    query = select(ExternalUpgrade).where(ExternalUpgrade.id > after_id, own(ExternalUpgrade.tenant))
    return list(session.scalars(query.order_by(ExternalUpgrade.id).limit(limit)))


def latest_external_upgrades(session: Session, before_id: int | None, limit: int) -> list[ExternalUpgrade]:
    """Return up to `limit` upgrades of the tenant, with ids below `before_id` if there is one, newest first."""
    query = select(ExternalUpgrade).where(own(ExternalUpgrade.tenant)).order_by(ExternalUpgrade.id.desc()).limit(limit)
    return list(session.scalars(query if before_id is None else query.where(ExternalUpgrade.id < before_id)))


def events_of(session: Session, upgrade_id: int) -> list[ExternalEvent]:
    """Return the changes of an upgrade's state, in order."""
    query = select(ExternalEvent).where(ExternalEvent.upgrade_id == upgrade_id).order_by(ExternalEvent.id)
    return list(session.scalars(query))


def lock_state(session: Session, upgrade_id: int, *, shared: bool = False) -> ExternalUpgrade:
    """Hold the upgrade's state until the transaction ends: shared by who works on a range, alone for a change."""
    get_external_upgrade(session, upgrade_id)  # who may not know of it does not wait for it either
    hold(session, AdvisoryLock.EXTERNAL_STATE, upgrade_id, shared=shared)
    return get_external_upgrade(session, upgrade_id)


def change_state(session: Session, upgrade_id: int, action: ExternalAction, **values: Any) -> ExternalUpgrade:
    """Move the upgrade's row: the only function that does. Returns once nothing of it is in flight.

    `values` are columns set with the state. Raises `IllegalTransition` (409) and `UnknownExternalUpgrade` (404).
    """
    upgrade = lock_state(session, upgrade_id)
    state = upgrade.state
    target = advance(state, action, upgrade.resume_state)
    if target == state:
        return upgrade

    if target in _ENDED:
        values["finished_at"] = func.now()
    if target is ExternalState.LIVE:
        values["live_at"] = func.now()
    move(session, upgrade, target, **{"error": None, **values})

    session.add(ExternalEvent(upgrade_id=upgrade_id, state=target, error=values.get("error")))
    events.info("external.state_changed", external_id=upgrade_id, before=str(state), after=str(target))
    if target not in (ExternalState.PAUSED, ExternalState.FAILED):
        send_after_commit(session, ADVANCE_EXTERNAL, upgrade_id)
    return get_external_upgrade(session, upgrade_id)


def retry_external_upgrade(session: Session, upgrade_id: int) -> ExternalUpgrade:
    """Go on after a failure, with a fresh count of attempts for what is not done."""
    upgrade = lock_state(session, upgrade_id)
    values: dict[str, Any] = {}
    if upgrade.state is ExternalState.FAILED:
        batches = ExternalBatch.upgrade_id == upgrade_id
        fresh = {"attempts": 0, "retry_at": None, "error": None, "refused": None}
        change_rows(session, ExternalBatch, batches, BatchAction.RESET, **fresh)
        if upgrade.resume_state is ExternalState.VERIFYING:
            values = {"findings": None}  # of passes that had something to repair: their count begins anew
    return change_state(session, upgrade_id, ExternalAction.RETRY, **values)


def set_speed(session: Session, upgrade_id: int, speed: float) -> ExternalUpgrade:
    """Let each worker work `speed` (0 to 1) of the time on an open upgrade, from its next range on; 0 stops it.

    Raises `ExternalUpgradeEnded` (409) when there is nothing left to throttle.
    """
    throttle(session, get_open_external_upgrade(session, upgrade_id), speed, OPEN)
    if speed > 0:
        send_after_commit(session, ADVANCE_EXTERNAL, upgrade_id)
    return get_external_upgrade(session, upgrade_id)


def fail_external_upgrade(session: Session, upgrade_id: int, sentence: str) -> None:
    """Stop the upgrade with a sentence that says what happened and what to do; nothing if it is not open any more."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state in WORKING | {ExternalState.READY}:
        change_state(session, upgrade_id, ExternalAction.FAIL, error=sentence, cutover_requested_at=None)
        events.warning("external.failed", external_id=upgrade_id, error=sentence)


def record_trouble(session: Session, upgrade_id: int, sentence: str | None) -> None:
    """Say why an upgrade rests while its store is away, or with None that it goes on; its state stays."""
    state = session.scalar(
        update(ExternalUpgrade)
        .where(ExternalUpgrade.id == upgrade_id, ExternalUpgrade.error.is_distinct_from(sentence))
        .where(ExternalUpgrade.state.not_in([ExternalState.PAUSED, ExternalState.FAILED]))
        .values(error=sentence, updated_at=func.now())
        .returning(ExternalUpgrade.state)
    )
    if state is not None:
        session.add(ExternalEvent(upgrade_id=upgrade_id, state=state, error=sentence))


def unfinished_external_upgrades(session: Session) -> Sequence[int]:
    """Return the upgrades that a worker may have something to do for: what the sweep nudges."""
    live = and_(ExternalUpgrade.state == ExternalState.LIVE, ExternalUpgrade.followed_at.is_(None))
    left = and_(ExternalUpgrade.state.in_(_ENDED), ExternalUpgrade.cleaned_at.is_(None))
    working = ExternalUpgrade.state.in_([*WORKING, ExternalState.READY])
    return session.scalars(
        select(ExternalUpgrade.id).where(or_(working, live, left)).order_by(ExternalUpgrade.id)
    ).all()
