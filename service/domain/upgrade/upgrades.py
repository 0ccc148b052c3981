"""Upgrades: looking at one, and the functions that change the states of upgrades and of their batches."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from service import logs
from service.advisory_locks import AdvisoryLock, hold
from service.domain.batch_state import TRANSITIONS, BatchAction
from service.domain.gallery.galleries import get_gallery, lock_gallery
from service.domain.gallery.generations import drop_generation
from service.domain.indexes.due import DueRebuild
from service.domain.indexes.engine import IndexEngine
from service.domain.judging import reports
from service.domain.upgrade_state import OPEN, WORKING, Action, State, advance
from service.domain.verdict import Verdict
from service.errors import Conflict, NotFound
from service.queue import ADVANCE_UPGRADE, send_after_commit
from service.tables import Item, Report, Upgrade, UpgradeBatch, UpgradeEvent

events = logs.Events(__name__)


class UnknownUpgrade(NotFound):
    """No upgrade has this id."""


class UpgradeEnded(Conflict):
    """The upgrade is not open any more."""


class NotReady(Conflict):
    """The upgrade is not ready."""


def get_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Return the upgrade as it is now, or raise `UnknownUpgrade` (404)."""
    upgrade = session.get(Upgrade, upgrade_id, populate_existing=True)
    if upgrade is None:
        raise UnknownUpgrade(f"There is no upgrade {upgrade_id}.")
    return upgrade


def get_open_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Return an upgrade that is open, or raise `UpgradeEnded` (409) or `UnknownUpgrade` (404)."""
    upgrade = get_upgrade(session, upgrade_id)
    if upgrade.state not in OPEN:
        raise UpgradeEnded(f"Upgrade {upgrade_id} is {upgrade.state}; there is nothing left to judge.")
    return upgrade


def ask_for_report(session: Session, upgrade_id: int, seed: int) -> int:
    """Have a worker write another report on an upgrade that is ready, and return its number.

    Raises `NotReady` (409) in another state.
    """
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state is not State.READY:
        raise NotReady(f"Upgrade {upgrade_id} is {upgrade.state}; it can be judged again while it is ready.")
    send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    return reports.ask_for_report(session, upgrade, seed)


def events_after(session: Session, upgrade_id: int, event_id: int) -> list[UpgradeEvent]:
    """Return the changes of an upgrade's state after one of them, in order."""
    query = select(UpgradeEvent).where(UpgradeEvent.upgrade_id == upgrade_id, UpgradeEvent.id > event_id)
    return list(session.scalars(query.order_by(UpgradeEvent.id)))


def list_upgrades(session: Session, gallery_name: str, after_id: int, limit: int) -> list[Upgrade]:
    """Return up to `limit` upgrades of a gallery with ids above `after_id`, by id."""
    gallery = get_gallery(session, gallery_name)
    query = (
        select(Upgrade).where(Upgrade.gallery_id == gallery.id, Upgrade.id > after_id).order_by(Upgrade.id).limit(limit)
    )
    return list(session.scalars(query))


def lock_state(session: Session, upgrade_id: int, *, shared: bool = False) -> Upgrade:
    """Hold the upgrade's state until the transaction ends: shared by batches, alone for a change of state."""
    hold(session, AdvisoryLock.UPGRADE_STATE, upgrade_id, shared=shared)
    return get_upgrade(session, upgrade_id)


def change_state(session: Session, upgrade_id: int, action: Action, **values: Any) -> Upgrade:
    """Move the upgrade's row: the only function that does. Returns once no batch is in flight.

    `values` are columns set with the state. Raises `IllegalTransition` (409) and `UnknownUpgrade` (404).
    """
    upgrade = lock_state(session, upgrade_id)
    state = upgrade.state
    target = advance(state, action, upgrade.resume_state)
    if target == state:
        return upgrade

    left: dict[str, Any] = {"resume_state": state} if target in (State.PAUSED, State.FAILED) else {}
    if target not in OPEN:
        left = {"finished_at": func.now()}
    if target is State.LIVE:
        left = {"live_at": func.now()}

    changed = session.execute(
        update(Upgrade)
        .where(Upgrade.id == upgrade_id, Upgrade.state == state)
        .values(state=target, updated_at=func.now(), **left, **values)
        .returning(Upgrade.id)
    ).scalar()
    if changed is None:
        raise RuntimeError(f"Upgrade {upgrade_id} left state {state} while its lock was held.")

    session.add(UpgradeEvent(upgrade_id=upgrade_id, state=target, error=values.get("error")))
    events.info("upgrade.state_changed", upgrade_id=upgrade_id, before=str(state), after=str(target))
    if target in WORKING or target is State.READY:
        send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    return get_upgrade(session, upgrade_id)


def change_batches(
    session: Session, which: ColumnElement[bool], action: BatchAction, **values: Any
) -> Sequence[UpgradeBatch]:
    """Move the rows of those batches that the action may move, and return them: the only function that does.

    `values` are columns set with the state.
    """
    sources, target = TRANSITIONS[action]
    statement = update(UpgradeBatch).where(which, UpgradeBatch.state.in_(sources)).values(state=target, **values)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement.returning(UpgradeBatch), execution_options=options).all()


def retry_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Go on after a failure, with a fresh count of attempts for what is not done; done batches are kept."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state is State.FAILED:
        change_batches(
            session, UpgradeBatch.upgrade_id == upgrade_id, BatchAction.RESET, attempts=0, retry_at=None, error=None
        )
    return change_state(session, upgrade_id, Action.RETRY, error=None)


def set_speed(session: Session, upgrade_id: int, speed: float) -> Upgrade:
    """Let each worker work `speed` (0 to 1) of the time on an open upgrade, from its next batch on; 0 stops it.

    Raises `UpgradeEnded` (409) when there is nothing left to throttle.
    """
    upgrade = get_upgrade(session, upgrade_id)
    # The rate is measured from `updated_at` on, and the same speed again is no change.
    updated_at = case((Upgrade.speed == speed, Upgrade.updated_at), else_=func.now())
    changed = session.execute(
        update(Upgrade)
        .where(Upgrade.id == upgrade_id, Upgrade.state.in_(OPEN))
        .values(speed=speed, updated_at=updated_at)
        .returning(Upgrade.id)
    ).scalar()
    if changed is None:
        raise UpgradeEnded(f"An upgrade that is {upgrade.state} has no speed.")
    if speed > 0:
        send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    return get_upgrade(session, upgrade_id)


def cancel_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Give the upgrade up and drop the next generation; the active one was never touched."""
    before = lock_state(session, upgrade_id)
    if before.state is State.CANCELLED:
        return before
    lock_gallery(session, before.gallery_id)
    upgrade = change_state(session, upgrade_id, Action.CANCEL, cutover_requested_at=None)
    drop_generation(session, upgrade.to_generation_id)
    return upgrade


def fail_upgrade(session: Session, upgrade_id: int, sentence: str) -> None:
    """Stop the upgrade with a sentence that says what happened and what to do; nothing if it is not open any more."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state in WORKING | {State.READY}:
        change_state(session, upgrade_id, Action.FAIL, error=sentence, cutover_requested_at=None)
        events.warning("upgrade.failed", upgrade_id=upgrade_id, error=sentence)


def fail_for_item(session: Session, upgrade_id: int, item_id: int, reason: str) -> None:
    """Stop the upgrade because of a row that cannot be transformed; `reason` says what is wrong with its values."""
    name = session.scalar(select(Item.external_id).where(Item.id == item_id))
    fail_upgrade(
        session,
        upgrade_id,
        f"Item {name!r} cannot be upgraded: a value of its transformed vectors {reason}. Replace or delete the item and"
        " retry, or cancel.",
    )


def upgrade_needs_workers(session: Session) -> bool:
    """Return whether an upgrade has more to do than to stay ready: other long work gives way to it."""
    newest = select(Report.verdict).where(Report.upgrade_id == Upgrade.id).order_by(Report.number.desc()).limit(1)
    passes = or_(Upgrade.observe, newest.scalar_subquery() == Verdict.PASS)
    asked = or_(Upgrade.cutover_requested_at.is_not(None), Upgrade.evaluate_seed.is_not(None))
    wants_cutover = or_(and_(Upgrade.cutover == "auto", passes), asked)
    working = and_(Upgrade.state.in_(WORKING), Upgrade.speed > 0)
    query = select(Upgrade.id).where(or_(working, and_(Upgrade.state == State.READY, wants_cutover))).limit(1)
    return session.scalar(query) is not None


def unfinished_upgrades(session: Session) -> Sequence[int]:
    """Return the upgrades that a worker has something to do for: what the sweep nudges."""
    return session.scalars(
        select(Upgrade.id).where(Upgrade.state.in_([*WORKING, State.READY])).order_by(Upgrade.id)
    ).all()


def find_due_build(session: Session, engine: IndexEngine, generation_id: int | None = None) -> DueRebuild | None:
    """Return a generation whose index is to be built anew, or that one if its is; none while an upgrade needs
    workers."""
    return None if upgrade_needs_workers(session) else engine.find_due(session, generation_id)


def count_upgrades(session: Session) -> dict[str, int]:
    """Return how many upgrades are in each state that one is in."""
    rows = session.execute(select(Upgrade.state, func.count()).group_by(Upgrade.state))
    return {state.value: count for state, count in rows}


def count_batches(session: Session) -> dict[str, int]:
    """Return how many batches are in each state that one is in."""
    rows = session.execute(select(UpgradeBatch.state, func.count()).group_by(UpgradeBatch.state))
    return {state.value: count for state, count in rows}
