"""Upgrades: planning one, looking at one, and the one function that changes an upgrade's state."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import and_, case, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import logs
from service.domain import registry
from service.domain.gallery.galleries import get_gallery, lock_gallery
from service.domain.gallery.generations import StoredGeneration, add_generation, drop_generation, stored_generations
from service.domain.upgrade.paths import Leg, find_legs
from service.domain.upgrade_state import OPEN, WORKING, Action, State, advance
from service.errors import Conflict, NotFound
from service.queue import ADVANCE_UPGRADE, send_after_commit
from service.tables import Gallery, ModelVersion, Upgrade, UpgradeBatch, UpgradeEvent

events = logs.Events(__name__)

# Advisory locks: (one of these, upgrade id). Batches in flight share STATE_LOCK; a change of state has it alone, so it
# waits for them and they see it. PHASE_LOCK lets one worker plan, build or evaluate at a time.
STATE_LOCK = 724_061
PHASE_LOCK = 724_062


class UnknownUpgrade(NotFound):
    """No upgrade has this id."""


class UpgradeOpen(Conflict):
    """The gallery has an open upgrade already."""


class UpgradeEnded(Conflict):
    """The upgrade is not open any more."""


class AlreadyThere(Conflict):
    """The gallery's active generation is under the version asked for."""


def plan_upgrade(
    session: Session,
    gallery_name: str,
    to_version: str,
    cutover: Literal["auto", "manual"],
    transformation_id: int | None = None,
    speed: float = 1.0,
) -> Upgrade:
    """Create the next generation with its empty table, and the upgrade that will fill it.

    From this commit on, ingested images are encoded for the next generation too. Raises `UpgradeOpen`, `AlreadyThere`
    and `NoPath` (409), `UnknownGallery`, `UnknownVersion` and `UnknownTransformation` (404).
    """
    version = registry.get_version(session, to_version)
    gallery = lock_gallery(session, get_gallery(session, gallery_name).id)
    active, legs = choose_path(session, gallery, version, transformation_id)
    generation = add_generation(
        session,
        gallery,
        version,
        state="building",
        has_side_information=legs[0].gives_side_information,
        parent_generation_id=legs[0].generation_id,
        transformation_id=legs[0].transformation_ids[-1],
    )
    upgrade = Upgrade(
        gallery_id=gallery.id,
        from_generation_id=active.id,
        to_generation_id=generation.id,
        legs=[leg.to_json() for leg in legs],
        cutover=cutover,
        speed=speed,
        state=State.PLANNED,
        start_revision=gallery.revision,
    )
    session.add(upgrade)
    try:
        session.flush()  # the unique index on open upgrades has the last word
    except IntegrityError as error:
        raise UpgradeOpen(f"Gallery {gallery_name!r} has an open upgrade.") from error
    session.add(UpgradeEvent(upgrade_id=upgrade.id, state=State.PLANNED))
    send_after_commit(session, ADVANCE_UPGRADE, upgrade.id)
    events.info("upgrade.planned", upgrade_id=upgrade.id, gallery_id=gallery.id, legs=upgrade.legs)
    return upgrade


def choose_path(
    session: Session, gallery: Gallery, version: ModelVersion, transformation_id: int | None
) -> tuple[StoredGeneration, list[Leg]]:
    """Return the gallery's active generation and the path from a stored one to `version`.

    Raises `UpgradeOpen`, `AlreadyThere` and `NoPath` (409), and `UnknownTransformation` (404).
    """
    open_id = session.scalar(select(Upgrade.id).where(Upgrade.gallery_id == gallery.id, Upgrade.state.in_(OPEN)))
    if open_id is not None:
        raise UpgradeOpen(f"Upgrade {open_id} of gallery {gallery.name!r} is open; finish or cancel it first.")
    stored = stored_generations(session, gallery.id)
    active = next(g for g in stored if g.id == gallery.active_generation_id)
    if active.version.id == version.id:
        raise AlreadyThere(f"Gallery {gallery.name!r} is already under model version {version.name!r}.")
    retained = [generation for generation in stored if generation is not active]
    return active, find_legs(session, version, active, retained, transformation_id)


def get_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Return the upgrade as it is now, or raise `UnknownUpgrade` (404)."""
    upgrade = session.get(Upgrade, upgrade_id, populate_existing=True)
    if upgrade is None:
        raise UnknownUpgrade(f"There is no upgrade {upgrade_id}.")
    return upgrade


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
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    session.execute(text(f"SELECT {function}(:space, :id)"), {"space": STATE_LOCK, "id": upgrade_id % 2**31})
    return get_upgrade(session, upgrade_id)


def change_state(session: Session, upgrade_id: int, action: Action, **values: Any) -> Upgrade:
    """Move the upgrade's row: the only function that does. Returns once no batch is in flight.

    `values` are columns set with the state. Raises `IllegalTransition` (409) and `UnknownUpgrade` (404).
    """
    upgrade = lock_state(session, upgrade_id)
    state = State(upgrade.state)
    target = advance(state, action, State(upgrade.resume_state) if upgrade.resume_state else None)
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


def pause_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Stop before the next batch; returns when no batch is in flight."""
    return change_state(session, upgrade_id, Action.PAUSE)


def resume_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Go on where the pause was."""
    return change_state(session, upgrade_id, Action.RESUME)


def retry_upgrade(session: Session, upgrade_id: int) -> Upgrade:
    """Go on after a failure, with a fresh count of attempts for what is not done; done batches are kept."""
    upgrade = lock_state(session, upgrade_id)
    if State(upgrade.state) is State.FAILED:
        session.execute(
            update(UpgradeBatch)
            .where(UpgradeBatch.upgrade_id == upgrade_id, UpgradeBatch.state != "done")
            .values(state="pending", attempts=0, retry_at=None, error=None)
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
    if State(before.state) is State.CANCELLED:
        return before
    lock_gallery(session, before.gallery_id)
    upgrade = change_state(session, upgrade_id, Action.CANCEL, cutover_requested_at=None)
    drop_generation(session, upgrade.to_generation_id)
    return upgrade


def fail_upgrade(session: Session, upgrade_id: int, sentence: str) -> None:
    """Stop the upgrade with a sentence that says what happened and what to do; nothing if it is not open any more."""
    upgrade = lock_state(session, upgrade_id)
    if State(upgrade.state) in WORKING | {State.READY}:
        change_state(session, upgrade_id, Action.FAIL, error=sentence, cutover_requested_at=None)
        events.warning("upgrade.failed", upgrade_id=upgrade_id, error=sentence)


def upgrade_needs_workers(session: Session) -> bool:
    """Return whether an upgrade has more to do than to stay ready: other long work gives way to it."""
    wants_cutover = or_(Upgrade.cutover == "auto", Upgrade.cutover_requested_at.is_not(None))
    working = and_(Upgrade.state.in_(WORKING), Upgrade.speed > 0)
    query = select(Upgrade.id).where(or_(working, and_(Upgrade.state == State.READY, wants_cutover))).limit(1)
    return session.scalar(query) is not None


def unfinished_upgrades(session: Session) -> Sequence[int]:
    """Return the upgrades that a worker has something to do for: what the sweep nudges."""
    return session.scalars(
        select(Upgrade.id).where(Upgrade.state.in_([*WORKING, State.READY])).order_by(Upgrade.id)
    ).all()
