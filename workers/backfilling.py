"""Advancing a backfill: its items are chosen, claimed, encoded and written until there are none or the time slice ends.

Any worker may do so, twice and cut off anywhere: items are claimed from rows and marked in the transaction that writes
their embeddings, and every change of state is guarded by the state that it leaves.
"""

import time

from models.unwanted import RunAbandoned, abandoned_when, check_wanted
from service import logs
from service.advisory_locks import AdvisoryLock
from service.crash_points import crash_point
from service.db import is_outage
from service.domain.backfill.backfills import (
    UnknownBackfill,
    cancel_if_dropped,
    finish_if_done,
    get_backfill,
    is_spent,
    stop_backfill,
)
from service.domain.backfill.encoding import reader_of
from service.domain.backfill.planning import start_backfill
from service.domain.backfill.work import (
    Encoding,
    claim_items,
    load_encoders,
    refuse_items,
    work_on_items,
)
from service.domain.backfill_state import BackfillAction, BackfillState
from service.domain.claims import Claim, pause_seconds, release_claim, return_claim
from service.domain.gallery.generations import gone_if_dropped
from service.errors import GalleryError
from service.index.served import GenerationGone
from service.tables import Backfill, BackfillItem
from workers.app import WorkerParts
from workers.stopping import StopAsked

events = logs.Events(__name__)

_REST_SLICE_SECONDS = 0.2
_AWAY_PAUSES = 15  # a place that does not answer is left alone for longer than work that failed: a minute soon


def advance_backfill(parts: WorkerParts, backfill_id: int) -> bool:
    """Work on a backfill for one time slice; return whether there is more that this worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    while time.monotonic() < ends:
        try:
            with parts.database.session_scope() as session:
                backfill = get_backfill(session, backfill_id)
        except UnknownBackfill:
            return False  # its gallery was deleted

        try:
            with gone_if_dropped():
                if not _step(parts, backfill):
                    return False
        except GenerationGone:
            with parts.database.session_scope() as session:
                if cancel_if_dropped(session, backfill_id):
                    return False
            time.sleep(_REST_SLICE_SECONDS)  # it was the one that knows the images; look again what there is
    return True


def _step(parts: WorkerParts, backfill: Backfill) -> bool:
    if backfill.state is BackfillState.PLANNED:
        with parts.database.session_scope() as session:
            start_backfill(session, backfill.id)
        return True
    if backfill.state is not BackfillState.RUNNING:
        return False
    if backfill.source == "client" or is_spent(backfill):
        with parts.database.session_scope() as session:
            if not cancel_if_dropped(session, backfill.id):
                finish_if_done(session, backfill.id)
        return False
    if backfill.speed == 0 or not _load(parts, backfill):
        return False
    rest = parts.backfill_throttle.rest_seconds(backfill.id, backfill.speed)
    if rest > 0:
        time.sleep(min(rest, _REST_SLICE_SECONDS))  # short: others get their turn, and the speed may change
        return True
    began = time.monotonic()
    found = _work(parts, backfill)
    parts.backfill_throttle.worked(backfill.id, time.monotonic() - began)
    return found


def _load(parts: WorkerParts, backfill: Backfill) -> bool:
    """Load the encoders before an item is claimed: where they cannot be, no item is to blame."""
    try:
        with parts.database.session_scope() as session:
            load_encoders(session, parts.writer.encoders, backfill)
    except GalleryError as error:
        sentence = f"{error.message} Retry the backfill when the cause is gone."
        with parts.database.session_scope() as session:
            stop_backfill(session, backfill.id, BackfillAction.FAIL, sentence)
        return False
    return True


def _work(parts: WorkerParts, backfill: Backfill) -> bool:
    """Claim and encode some items; return whether there is reason to look for more."""
    settings = parts.settings
    claim = claim_items(parts.database, settings, backfill.id)
    if claim is None:
        with parts.database.session_scope() as session:
            finish_if_done(session, backfill.id)
        return False
    if claim.attempts > settings.max_batch_attempts:
        _refuse(parts, claim)
        return True

    away_seconds = pause_seconds(claim.attempts, _AWAY_PAUSES * settings.retry_base_seconds)
    encoding = Encoding(parts.writer.encoders, settings.image_reads_at_once, away_seconds, check_wanted)
    stop_asked = StopAsked(parts.database, AdvisoryLock.BACKFILL_STOP, backfill.id)
    try:
        with abandoned_when(stop_asked), parts.database.session_scope() as session:
            done = work_on_items(session, claim, encoding, reader_of(parts.images))
        crash_point("backfill.committed")
    except GenerationGone:
        raise
    except RunAbandoned:
        with parts.database.session_scope() as session:
            return_claim(session, claim)
        return False
    except Exception as error:  # noqa: BLE001 - any item may fail; recorded, and tried again by itself after a pause
        if is_outage(error):
            return False  # the lease ends, and the sweep asks again once the database is back
        events.exception("backfill.items_failed", error, backfill_id=backfill.id)
        with parts.database.session_scope() as session:
            release_claim(session, claim, f"{type(error).__name__}: {error}", settings.retry_base_seconds)
        return True
    return done is not None


def _refuse(parts: WorkerParts, claim: Claim[BackfillItem]) -> None:
    tries = parts.settings.max_batch_attempts
    reason = claim.last_error or "none, its worker died"
    with parts.database.session_scope() as session:
        refuse_items(session, claim, f"It was tried {tries} times; its last error: {reason}")
