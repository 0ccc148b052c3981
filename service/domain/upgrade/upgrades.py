"""Upgrades: looking at one, and the functions that change the state of one."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from service import logs
from service.access.tenancy import own_galleries, sees_gallery
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.domain.batch_state import BatchAction, BatchState
from service.domain.claims import change_rows
from service.domain.gallery.galleries import get_gallery, lock_gallery
from service.domain.gallery.generations import drop_generation
from service.domain.indexes.due import DueRebuild
from service.domain.indexes.engine import IndexEngine
from service.domain.judging import reports
from service.domain.steering import move, throttle
from service.domain.upgrade_state import OPEN, WORKING, Action, State, advance
from service.domain.verdict import Verdict
from service.errors import Conflict, NotFound
from service.queue import ADVANCE_UPGRADE, send_after_commit
from service.tables import Gallery, Item, Report, Upgrade, UpgradeBatch, UpgradeEvent

NAMED_ITEMS = 100  # of those that cannot be upgraded; the others are counted

events = logs.Events(__name__)


class UnknownUpgrade(NotFound):
    """No upgrade has this id."""


class UpgradeEnded(Conflict):
    """The upgrade is not open any more."""


class NotReady(Conflict):
    """The upgrade is not ready."""


def get_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Return the upgrade as it is now, or raise `UnknownUpgrade` (404), also for one of a gallery
    that the key is not for."""
    upgrade = session.get(Upgrade, upgrade_id, populate_existing=True)
    if upgrade is None or not sees_gallery(session, upgrade.gallery_id):
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


def events_of(session: Session, upgrade_id: int) -> list[UpgradeEvent]:
    """Return what happened to an upgrade, in order."""
    query = select(UpgradeEvent).where(UpgradeEvent.upgrade_id == upgrade_id).order_by(UpgradeEvent.id)
    return list(session.scalars(query))


def list_batches(session: Session, upgrade_id: int, limit: int) -> list[UpgradeBatch]:
    """Return up to `limit` batches of an upgrade, those that are not done first, else by id."""
    query = select(UpgradeBatch).where(UpgradeBatch.upgrade_id == upgrade_id)
    return list(session.scalars(query.order_by(UpgradeBatch.state == BatchState.DONE, UpgradeBatch.id).limit(limit)))


def list_upgrades(session: Session, gallery_name: str | None, after_id: int, limit: int) -> list[Upgrade]:
    """Return up to `limit` upgrades, of a gallery or of all that whoever is served may see, with ids above `after_id`,
    by id."""
    query = select(Upgrade).where(Upgrade.id > after_id).order_by(Upgrade.id).limit(limit)
    if gallery_name is None:
        query = query.where(Upgrade.gallery_id.in_(select(Gallery.id).where(own_galleries())))
    else:
        query = query.where(Upgrade.gallery_id == get_gallery(session, gallery_name).id)
    return list(session.scalars(query))


def newest_upgrades(session: Session, gallery_ids: Sequence[int]) -> dict[int, Upgrade]:
    """Return the newest upgrade of each gallery that has one, by gallery."""
    query = select(Upgrade).where(Upgrade.gallery_id.in_(gallery_ids))
    newest = query.ext(distinct_on(Upgrade.gallery_id)).order_by(Upgrade.gallery_id, Upgrade.id.desc())
    return {upgrade.gallery_id: upgrade for upgrade in session.scalars(newest)}


def latest_upgrades(session: Session, before_id: int | None, limit: int) -> list[Upgrade]:
    """Return up to `limit` upgrades of all galleries, with ids below `before_id` if there is one, newest first."""
    query = select(Upgrade).join(Gallery, Gallery.id == Upgrade.gallery_id).where(own_galleries())
    query = query.order_by(Upgrade.id.desc()).limit(limit)
    return list(session.scalars(query if before_id is None else query.where(Upgrade.id < before_id)))


def lock_state(session: Session, upgrade_id: int, *, shared: bool = False) -> Upgrade:
    """Hold the upgrade's state until the transaction ends: shared by batches, alone for a change of state."""
    get_upgrade(session, upgrade_id)  # who may not know of it does not wait for it either
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

    if state is State.READY:
        values = {"canary": 0.0, **values}
    if target is State.LIVE:
        values["live_at"] = func.now()
    elif target not in OPEN:
        values["finished_at"] = func.now()
    move(session, upgrade, target, **values)

    session.add(UpgradeEvent(upgrade_id=upgrade_id, state=target, error=values.get("error")))
    events.info("upgrade.state_changed", upgrade_id=upgrade_id, before=str(state), after=str(target))
    if target in WORKING or target is State.READY:
        send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    return get_upgrade(session, upgrade_id)


def note_event(session: Session, upgrade: Upgrade, note: str) -> None:
    """Record what changed of an upgrade while its state stays; the state is held."""
    session.add(UpgradeEvent(upgrade_id=upgrade.id, state=upgrade.state, note=note))
    session.flush()  # events have their ids in the order of the changes


def retry_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Go on after a failure, with a fresh count of attempts for what is not done; done batches are kept."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state is State.FAILED:
        batches = UpgradeBatch.upgrade_id == upgrade_id
        fresh = {"attempts": 0, "retry_at": None, "error": None, "refused": None}
        change_rows(session, UpgradeBatch, batches, BatchAction.RESET, **fresh)
    return change_state(session, upgrade_id, Action.RETRY, error=None)


def set_speed(session: Session, upgrade_id: int, speed: float) -> Upgrade:
    """Let each worker work `speed` (0 to 1) of the time on an open upgrade, from its next batch on; 0 stops it.

    Raises `UpgradeEnded` (409) when there is nothing left to throttle.
    """
    upgrade = get_upgrade(session, upgrade_id)
    if not throttle(session, upgrade, speed, OPEN):
        raise UpgradeEnded(f"An upgrade that is {upgrade.state} has no speed.")
    if speed > 0:
        send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
    return get_upgrade(session, upgrade_id)


def pause_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Pause the upgrade. Returns once no batch is in flight; a network that computes for one is stopped."""
    _ask_to_stop(session, upgrade_id, Action.PAUSE)
    return change_state(session, upgrade_id, Action.PAUSE)


def _ask_to_stop(session: Session, upgrade_id: int, action: Action) -> None:
    """Have batches in flight given back, until the transaction ends, by whoever computes for them. Raises
    `IllegalTransition` (409) where the action is not possible as it seems, and `UnknownUpgrade` (404)."""
    upgrade = get_upgrade(session, upgrade_id)
    advance(upgrade.state, action, upgrade.resume_state)
    hold(session, AdvisoryLock.UPGRADE_STOP, upgrade_id)


def cancel_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Give the upgrade up and drop the next generation; the active one was never touched. A network that computes for a
    batch is stopped."""
    _ask_to_stop(session, upgrade_id, Action.CANCEL)
    before = lock_state(session, upgrade_id)
    if before.state is State.CANCELLED:
        return before
    state = before.state
    lock_gallery(session, before.gallery_id)
    upgrade = change_state(session, upgrade_id, Action.CANCEL, cutover_requested_at=None)
    drop_generation(session, upgrade.to_generation_id)
    dropped = {"dropped_generation": upgrade.to_generation_id}
    record(session, Act.UPGRADE_CANCELLED, Subject("upgrade", upgrade_id), before={"state": state}, after=dropped)
    return upgrade


def fail_upgrade(session: Session, upgrade_id: int, sentence: str) -> None:
    """Stop the upgrade with a sentence that says what happened and what to do; nothing if it is not open any more."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state in WORKING | {State.READY}:
        change_state(session, upgrade_id, Action.FAIL, error=sentence, cutover_requested_at=None)
        events.warning("upgrade.failed", upgrade_id=upgrade_id, error=sentence)


def record_shortage(session: Session, upgrade_id: int, sentence: str | None) -> None:
    """Say why an upgrade rests while the disk has too little room, or with None that it goes on; its state stays."""
    is_news = Upgrade.error.is_(None) if sentence is not None else Upgrade.error.is_not(None)
    state = session.scalar(
        update(Upgrade)
        .where(Upgrade.id == upgrade_id, Upgrade.state.in_(WORKING), is_news)
        .values(error=sentence, updated_at=func.now())
        .returning(Upgrade.state)
    )
    if state is not None:
        session.add(UpgradeEvent(upgrade_id=upgrade_id, state=state, error=sentence))


def fail_for_items(session: Session, upgrade_id: int, reasons: dict[int, str], count: int | None = None) -> None:
    """Stop the upgrade because of items that cannot be transformed, `count` of them where not all are named.

    `reasons` say by item id what is wrong: words that follow "its".
    """
    refusal = items_refused(session, reasons, count or len(reasons))
    fail_upgrade(session, upgrade_id, f"{refusal} Replace or delete them and retry, or cancel.")


def items_refused(session: Session, reasons: dict[int, str], count: int) -> str:
    """Return a sentence that names the first of `count` items that cannot be upgraded, with the reasons by item id."""
    named = sorted(reasons)[:NAMED_ITEMS]
    rows = session.execute(select(Item.id, Item.external_id).where(Item.id.in_(named)))
    names = {row.id: row.external_id for row in rows}  # one may be deleted meanwhile
    by_reason: dict[str, list[str]] = {}
    for item_id in named:
        by_reason.setdefault(reasons[item_id], []).append(repr(names.get(item_id)))
    listed = "; ".join(f"of {', '.join(ids)} the {reason}" for reason, ids in by_reason.items())
    left = f"; and {count - len(named)} more" if count > len(named) else ""
    return f"{count} {'item' if count == 1 else 'items'} cannot be upgraded: {listed}{left}."


def fail_for_refused(session: Session, upgrade_id: int) -> bool:
    """Stop the upgrade if nothing is left of its batches but those with items that cannot be upgraded; return whether
    that is so."""
    query = select(UpgradeBatch).where(UpgradeBatch.upgrade_id == upgrade_id, UpgradeBatch.state != BatchState.DONE)
    left = session.scalars(query.order_by(UpgradeBatch.id)).all()
    refused = [batch.refused for batch in left if batch.refused is not None]
    if not refused or len(refused) < len(left):
        return False
    reasons = {named.item_id: named.reason for each in refused for named in each.first}
    fail_for_items(session, upgrade_id, reasons, sum(each.count for each in refused))
    return True


def needs_workers() -> ColumnElement[bool]:
    """Return the condition that an upgrade has more to do than to stay ready: other long work gives way to it."""
    newest = select(Report.verdict).where(Report.upgrade_id == Upgrade.id).order_by(Report.number.desc()).limit(1)
    passes = or_(Upgrade.observe, newest.scalar_subquery() == Verdict.PASS)
    asked = or_(Upgrade.cutover_requested_at.is_not(None), Upgrade.evaluate_seed.is_not(None))
    wants_cutover = or_(and_(Upgrade.cutover == "auto", passes), asked)
    working = and_(Upgrade.state.in_(WORKING), Upgrade.speed > 0)
    return or_(working, and_(Upgrade.state == State.READY, wants_cutover))


def upgrade_needs_workers(session: Session) -> bool:
    """Return whether there is an upgrade that does."""
    return session.scalar(select(Upgrade.id).where(needs_workers()).limit(1)) is not None


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


def count_open_batches(session: Session) -> dict[str, int]:
    """Return how many batches of open upgrades are in each state that one is in: not of all that ever were."""
    open_upgrades = select(Upgrade.id).where(Upgrade.state.in_(OPEN))
    of_open = select(UpgradeBatch.state, func.count()).where(UpgradeBatch.upgrade_id.in_(open_upgrades))
    return {state.value: count for state, count in session.execute(of_open.group_by(UpgradeBatch.state))}
