"""Backfills: looking at one, and the functions that change the state of one."""

from collections.abc import Sequence

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from service import logs
from service.access.tenancy import sees_gallery
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.domain.backfill_state import OPEN, WORKING, BackfillAction, BackfillState, advance
from service.domain.batch_state import UNFINISHED, BatchAction
from service.domain.claims import change_rows
from service.domain.gallery.galleries import get_gallery
from service.domain.generation_stage import STORED
from service.domain.steering import move, throttle
from service.errors import Conflict, NotFound
from service.queue import ADVANCE_BACKFILL, send_after_commit
from service.tables import Backfill, BackfillEvent, BackfillItem, Generation

events = logs.Events(__name__)


NO_GENERATION = "Its generation was dropped: the upgrade was cancelled, rolled back or finalized."


class UnknownBackfill(NotFound):
    """No backfill has this id."""


class BackfillEnded(Conflict):
    """The backfill is not open any more."""


def get_backfill(session: Session, backfill_id: int) -> Backfill:
    """Return the backfill as it is now, or raise `UnknownBackfill` (404), also for one of a gallery
    that the key is not for."""
    backfill = session.get(Backfill, backfill_id, populate_existing=True)
    if backfill is None or not sees_gallery(session, backfill.gallery_id):
        raise UnknownBackfill(f"There is no backfill {backfill_id}.")
    return backfill


def list_backfills(session: Session, gallery_name: str, after_id: int, limit: int) -> list[Backfill]:
    """Return up to `limit` backfills of a gallery with ids above `after_id`, by id."""
    gallery = get_gallery(session, gallery_name)
    query = select(Backfill).where(Backfill.gallery_id == gallery.id, Backfill.id > after_id)
    return list(session.scalars(query.order_by(Backfill.id).limit(limit)))


def events_of(session: Session, backfill_id: int) -> list[BackfillEvent]:
    """Return the changes of a backfill's state, in order."""
    query = select(BackfillEvent).where(BackfillEvent.backfill_id == backfill_id).order_by(BackfillEvent.id)
    return list(session.scalars(query))


def lock_state(session: Session, backfill_id: int, *, shared: bool = False) -> Backfill:
    """Hold the backfill's state until the transaction ends: shared by who encodes, alone for a change of state."""
    get_backfill(session, backfill_id)  # who may not know of it does not wait for it either
    hold(session, AdvisoryLock.BACKFILL_STATE, backfill_id, shared=shared)
    return get_backfill(session, backfill_id)


def change_state(session: Session, backfill_id: int, action: BackfillAction, error: str | None = None) -> Backfill:
    """Move the backfill's row: the only function that does. Returns once nothing of it is in flight.

    Raises `IllegalTransition` (409) and `UnknownBackfill` (404).
    """
    backfill = lock_state(session, backfill_id)
    state = backfill.state
    target = advance(state, action, backfill.resume_state)
    if target == state:
        return backfill

    ended = {} if target in OPEN else {"finished_at": func.now()}
    move(session, backfill, target, error=error, **ended)

    session.add(BackfillEvent(backfill_id=backfill_id, state=target, error=error))
    if target is BackfillState.CANCELLED:
        before = {"state": state}
        record(session, Act.BACKFILL_CANCELLED, Subject("backfill", backfill_id), before=before, reason=error)
    events.info("backfill.state_changed", backfill_id=backfill_id, before=str(state), after=str(target))
    if target in WORKING:
        send_after_commit(session, ADVANCE_BACKFILL, backfill_id)
    return get_backfill(session, backfill_id)


def pause_backfill(session: Session, backfill_id: int) -> Backfill:
    """Pause the backfill. Returns once nothing of it is in flight; images that are being read are not waited for."""
    return _stop(session, backfill_id, BackfillAction.PAUSE)


def cancel_backfill(session: Session, backfill_id: int) -> Backfill:
    """Give the backfill up; what is done stays. Images that are being read are not waited for."""
    return _stop(session, backfill_id, BackfillAction.CANCEL)


def _stop(session: Session, backfill_id: int, action: BackfillAction) -> Backfill:
    """Change the state, and have items in flight given back meanwhile by whoever reads or encodes their images."""
    backfill = get_backfill(session, backfill_id)
    advance(backfill.state, action, backfill.resume_state)  # what is not possible stops nothing
    hold(session, AdvisoryLock.BACKFILL_STOP, backfill_id)
    return change_state(session, backfill_id, action)


def retry_backfill(session: Session, backfill_id: int) -> Backfill:
    """Go on after a failure, with a fresh count of attempts for what is not done."""
    if lock_state(session, backfill_id).state is BackfillState.FAILED:
        items = BackfillItem.backfill_id == backfill_id
        change_rows(session, BackfillItem, items, BatchAction.RESET, attempts=0, retry_at=None, error=None)
    return change_state(session, backfill_id, BackfillAction.RETRY)


def set_speed(session: Session, backfill_id: int, speed: float) -> Backfill:
    """Let each worker work `speed` (0 to 1) of the time on an open backfill, from its next items on; 0 stops it.

    Raises `BackfillEnded` (409) when there is nothing left to throttle.
    """
    backfill = get_backfill(session, backfill_id)
    if not throttle(session, backfill, speed, OPEN):
        raise BackfillEnded(f"A backfill that is {backfill.state} has no speed.")
    if speed > 0:
        send_after_commit(session, ADVANCE_BACKFILL, backfill_id)
    return get_backfill(session, backfill_id)


def stop_backfill(session: Session, backfill_id: int, action: BackfillAction, sentence: str) -> None:
    """Fail or cancel a backfill that is worked on, with a sentence that says why; nothing if it is not."""
    if lock_state(session, backfill_id).state in WORKING:
        change_state(session, backfill_id, action, sentence)
        events.warning("backfill.stopped", backfill_id=backfill_id, action=str(action), error=sentence)


def cancel_if_dropped(session: Session, backfill_id: int) -> bool:
    """Cancel a backfill whose generation was dropped; return whether that is so."""
    backfill = get_backfill(session, backfill_id)
    if session.get_one(Generation, backfill.generation_id).state in STORED:
        return False
    stop_backfill(session, backfill_id, BackfillAction.CANCEL, NO_GENERATION)
    return True


def is_spent(backfill: Backfill) -> bool:
    """Return whether a backfill has used up the seconds that it had."""
    return backfill.seconds is not None and backfill.spent_seconds >= backfill.seconds


def finish_if_done(session: Session, backfill_id: int) -> bool:
    """Finish a running backfill that has no item left, or has spent its seconds; return whether that is so."""
    backfill = get_backfill(session, backfill_id)
    if backfill.state is not BackfillState.RUNNING:
        return False
    left = exists().where(BackfillItem.backfill_id == backfill_id, BackfillItem.state.in_(UNFINISHED))
    if not is_spent(backfill) and session.scalar(select(left)):
        return False
    if lock_state(session, backfill_id).state is BackfillState.RUNNING:
        change_state(session, backfill_id, BackfillAction.FINISH)
    return True


def unfinished_backfills(session: Session) -> Sequence[int]:
    """Return the backfills that a worker may have something to do for: what the sweep nudges."""
    return session.scalars(select(Backfill.id).where(Backfill.state.in_(WORKING)).order_by(Backfill.id)).all()
