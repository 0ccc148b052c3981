"""The batches of an ingest: parts of its list, claimed from rows.

The steps, with their crash points and what a crash there leaves:
1. claim a batch, in a short transaction that counts the attempt (`ingest.claimed`): the claim, which the next claimer
   takes over when its lease has ended. The lease is renewed while its worker lives; no row is locked and no transaction
   open while images are read and encoded;
2. read, decode and encode the images, and write the items and their rows as any ingest does
   (`service.domain.gallery.writes`): the same, since the transaction is gone;
3. in the same transaction, mark the batch done, keep why images were rejected, drop the others from the list and record
   the progress (`ingest.recorded`); the caller commits (`ingest.committed`): all of it together;
4. when every batch is done, end the job with their sums.
Who lost a claim, or whose job does not run any more, finds so in step 3, and nothing is written. So every image is
stored once for the job, however often it was begun; it is a write of the moment at which it is stored, and replaces
what others wrote to the item before.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service import logs
from service.crash_points import crash_point
from service.db import AWAY, Database
from service.domain.batch_state import BatchState
from service.domain.claims import Claim, claim_rows, finish_claim, release_claim, renew_lease
from service.domain.gallery.images import ImageResult
from service.domain.gallery.new_items import NewItem
from service.domain.ingest.references import PHASE, UNIT
from service.domain.job_state import WORKING, JobAction, JobState
from service.domain.jobs import INGEST, change_jobs, succeed_job
from service.domain.phases import Phase, phase_of, rate_of
from service.json_records import JsonRecord
from service.tables import Gallery, IngestBatch, IngestReference, Job

events = logs.Events(__name__)

_RECENT_BATCHES = 16
_MOST_REASON_CHARACTERS = 1_000


class IngestNotRunning(Exception):
    """The job was paused, cancelled or ended, or the batch is another worker's by now: nothing may be written."""


@dataclass(frozen=True)
class BatchClaim(Claim[IngestBatch]):
    """The right to work on one batch, whose images are `items`."""

    items: Sequence[NewItem]


@dataclass(frozen=True)
class IngestResult(JsonRecord):
    """What became of an ingest's images, as the job's row keeps it."""

    created: int
    replaced: int
    rejected: int


@dataclass(frozen=True)
class RunningIngest:
    """A job that a worker may work on now, and where its images go."""

    job_id: int
    tenant: str
    gallery_name: str
    speed: float


def begin_ingest(session: Session, job_id: int) -> RunningIngest | None:
    """Record that an ingest runs, and return it; None when there is nothing to do for it now."""
    change_jobs(session, (Job.id == job_id) & (Job.kind == INGEST) & (Job.state == JobState.QUEUED), JobAction.BEGIN)
    query = select(Job.speed, Gallery.tenant, Gallery.name).join(Gallery, Gallery.id == Job.gallery_id)
    row = session.execute(
        query.where(Job.id == job_id, Job.kind == INGEST, Job.state == JobState.RUNNING)
    ).one_or_none()
    return None if row is None or row.speed == 0 else RunningIngest(job_id, row.tenant, row.name, row.speed)


def claim_batch(database: Database, job_id: int, lease_seconds: float) -> BatchClaim | None:
    """Claim a batch that is pending, or whose claimer is gone; None when there is none to take.

    Committed at once, so that an attempt counts even if it kills the worker.
    """
    # 1.
    with database.session_scope() as session:
        claim = claim_rows(session, IngestBatch, IngestBatch.job_id == job_id, IngestBatch.id, 1, lease_seconds)
        if claim is None:
            return None
        items = _items_of(session, claim.row)
    crash_point("ingest.claimed")
    return BatchClaim(claim.table, claim.rows, items)


def _items_of(session: Session, batch: IngestBatch) -> list[NewItem]:
    query = select(IngestReference).where(
        IngestReference.job_id == batch.job_id,
        IngestReference.position.between(batch.first_position, batch.last_position),
    )
    return [
        NewItem(reference.external_id, reference.metadata_, reference.label, reference.image_uri)
        for reference in session.scalars(query.order_by(IngestReference.position))
    ]


@contextmanager
def lease_kept(database: Database, claim: BatchClaim, lease_seconds: float) -> Iterator[None]:
    """Renew the lease of a claimed batch again and again, in a thread, while this process lives."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_seconds / 3):
            try:
                with database.session_scope() as session:
                    renew_lease(session, claim, lease_seconds)
            except AWAY as error:  # the work itself finds out whether the database comes back in time
                events.warning("ingest.lease_not_renewed", batch_id=claim.row.id, error=str(error))

    thread = threading.Thread(target=renew, name="ingest-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def record_batch(session: Session, claim: BatchClaim, results: Sequence[ImageResult]) -> None:
    """Mark a batch done, with what became of its images, in the transaction that wrote them.

    Raises `IngestNotRunning`, which undoes it.
    """
    # 3.
    runs = select(Job.id).where(Job.id == claim.row.job_id, Job.state == JobState.RUNNING).with_for_update()
    if session.scalar(runs) is None:
        raise IngestNotRunning
    counts = {status: sum(result.status == status for result in results) for status in ("created", "replaced")}
    rejected = {
        claim.row.first_position + n: result.error for n, result in enumerate(results) if result.error is not None
    }
    finished = {**counts, "rejected": len(rejected)}
    if not finish_claim(session, claim, **finished):
        raise IngestNotRunning
    _strike_from_list(session, claim, rejected)
    progress = {PHASE: _progress(session, claim.row.job_id).to_json()}
    session.execute(update(Job).where(Job.id == claim.row.job_id).values(progress=progress, error=None))
    events.info("ingest.batch_recorded", job_id=claim.row.job_id, batch_id=claim.row.id, **finished)
    crash_point("ingest.recorded")


def _strike_from_list(session: Session, claim: BatchClaim, rejected: dict[int, str]) -> None:
    """Remove a batch's images from the list, but for those that were rejected, by position; keep why these were."""
    stored = delete(IngestReference).where(
        IngestReference.job_id == claim.row.job_id,
        IngestReference.position.between(claim.row.first_position, claim.row.last_position),
        IngestReference.position.not_in(list(rejected)),
    )
    session.execute(stored, execution_options={"synchronize_session": False})
    if rejected:
        reasons = [
            {"job_id": claim.row.job_id, "position": position, "reason": _storable(reason)}
            for position, reason in rejected.items()
        ]
        session.execute(update(IngestReference), reasons)


def _storable(reason: str) -> str:
    """Return a reason as PostgreSQL can store it: some libraries repeat what a server sent."""
    return reason[:_MOST_REASON_CHARACTERS].replace("\0", "").encode("utf-8", "replace").decode()


def _progress(session: Session, job_id: int) -> Phase:
    """Return how far an ingest is; its rate is that of the batches that were done last, since its state or its speed
    was changed: `updated_at` says when."""
    images = IngestBatch.last_position - IngestBatch.first_position + 1
    is_done = IngestBatch.state == BatchState.DONE
    of_job = IngestBatch.job_id == job_id
    done, total = session.execute(
        select(func.coalesce(func.sum(images).filter(is_done), 0), func.sum(images)).where(of_job)
    ).one()
    began = session.scalars(select(Job.updated_at).where(Job.id == job_id)).one()
    recent = session.execute(
        select(images, IngestBatch.done_at)
        .where(of_job, is_done, IngestBatch.done_at > began)
        .order_by(IngestBatch.done_at.desc())
        .limit(_RECENT_BATCHES + 1)
    ).all()
    counted = recent[:_RECENT_BATCHES]
    since = recent[-1].done_at if len(recent) > _RECENT_BATCHES else began
    rate = rate_of(sum(row[0] for row in counted), (counted[0].done_at - since).total_seconds()) if counted else None
    return phase_of(int(done), int(total), UNIT, rate)


def release_batch(session: Session, claim: BatchClaim, sentence: str, retry_base_seconds: float) -> None:
    """Give a claim back after a failure, with the reason, which the job shows until a batch is done."""
    reason = _storable(sentence)
    release_claim(session, claim, reason, retry_base_seconds)
    session.execute(update(Job).where(Job.id == claim.row.job_id, Job.state == JobState.RUNNING).values(error=reason))


def end_ingest(session: Session, job_id: int) -> bool:
    """End an ingest whose batches are all done; return False while one is not."""
    # 4.
    unfinished = select(func.count()).where(IngestBatch.job_id == job_id, IngestBatch.state != BatchState.DONE)
    if session.scalar(unfinished):
        return False
    columns = (IngestBatch.created, IngestBatch.replaced, IngestBatch.rejected)
    sums = (func.coalesce(func.sum(column), 0) for column in columns)
    counts = session.execute(select(*sums).where(IngestBatch.job_id == job_id)).one()
    result = IngestResult(*map(int, counts)).to_json()
    if succeed_job(session, job_id, result):
        events.info("ingest.succeeded", job_id=job_id, **result)
    return True


def unfinished_ingests(session: Session) -> Sequence[int]:
    """Return the ingests that a worker may have something to do for: what the sweep nudges."""
    query = select(Job.id).where(Job.kind == INGEST, Job.state.in_(WORKING), Job.speed > 0)
    return session.scalars(query.order_by(Job.id)).all()
