"""Jobs: the record of long work that a client may look at."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from service.access.tenancy import own_jobs, sees_job
from service.audit import Act, Subject, record
from service.domain.job_state import TRANSITIONS, UNFINISHED, WORKING, JobAction, JobState
from service.domain.phases import Phase
from service.errors import Conflict, NotFound
from service.json_records import JsonRecord
from service.queue import ADVANCE_INGEST, send_after_commit
from service.tables import Gallery, Job, JobKind, Json

TRAINING: JobKind = "transformation_training"
INDEX_BUILD: JobKind = "index_build"
INGEST: JobKind = "image_ingest"
ERASURE: JobKind = "erasure"


@dataclass(frozen=True)
class BuildProgress(JsonRecord):
    """How many rows the index has that a job builds."""

    done: int
    total: int


@dataclass(frozen=True)
class BuildResult(JsonRecord):
    """How many rows the index has that a job built, and how long that took; its row says more of it."""

    rows: int
    seconds: float


class UnknownJob(NotFound):
    """No job has this id."""


class NotCancellable(Conflict):
    """The job has ended, or is a part of something else."""


class NotPausable(Conflict):
    """The job has ended, or is of a kind that does not pause."""


def start_job(
    session: Session, kind: JobKind, gallery_id: int, generation_id: int | None, upgrade_id: int | None
) -> int:
    """Record that a job runs and return its id."""
    job = Job(
        tenant=select(Gallery.tenant).where(Gallery.id == gallery_id).scalar_subquery(),
        kind=kind,
        state=JobState.RUNNING,
        gallery_id=gallery_id,
        generation_id=generation_id,
        upgrade_id=upgrade_id,
    )
    session.add(job)
    session.flush()  # its id is the answer
    return job.id


def change_jobs(session: Session, which: ColumnElement[bool], action: JobAction, **values: Any) -> bool:
    """Move the rows of those jobs that the action may move: the only function that does. Return whether one was.

    `values` are columns set with the state.
    """
    sources, target = TRANSITIONS[action]
    ended = {} if target in UNFINISHED else {"finished_at": func.now()}
    moved = session.scalars(
        update(Job)
        .where(which, Job.state.in_(sources))
        .values(state=target, updated_at=func.now(), **ended, **values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).all()
    return bool(moved)


def record_progress(session: Session, job_id: int, progress: BuildProgress) -> bool:
    """Record how far a job is; return whether it still runs, or its work is not wanted any more."""
    running = update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING)
    recorded = running.values(progress=progress.to_json(), updated_at=func.now()).returning(Job.id)
    return session.scalar(recorded) is not None


def succeed_job(session: Session, job_id: int, result: Json) -> bool:
    """Record a job's result; return False for one that was ended meanwhile: its work is not wanted any more."""
    return change_jobs(session, Job.id == job_id, JobAction.SUCCEED, result=result, error=None)


def fail_job(session: Session, job_id: int, sentence: str) -> bool:
    """Record why a job failed; return False for one that was ended meanwhile."""
    return change_jobs(session, Job.id == job_id, JobAction.FAIL, error=sentence)


def withdraw_job(session: Session, job_id: int, reason: str) -> None:
    """Record that a job was given up for something more urgent: that is no failure."""
    change_jobs(session, Job.id == job_id, JobAction.CANCEL, error=reason)


def end_jobs_left_running(session: Session, generation_id: int) -> None:
    """Record that the jobs of a generation that still seem to run do not: the process that ran them died, or its work
    is not wanted any more."""
    change_jobs(
        session,
        Job.generation_id == generation_id,
        JobAction.FAIL,
        error="It was cut off: its process died, or its upgrade ended.",
    )


def cancel_job(session: Session, job_id: int) -> Job:
    """Give a training or an ingest up. A worker stops at its next step, and can register or write nothing any more;
    what an ingest has written stays.

    Raises `UnknownJob` (404), and `NotCancellable` (409) for one that has ended otherwise, builds an index, or erases.
    """
    job = _lock_job(session, job_id)
    if job.state is JobState.CANCELLED:
        return job
    if job.kind == ERASURE:
        raise NotCancellable(f"Job {job_id} erases: what it has removed is gone, and it goes on until all of it is.")
    if job.kind == INDEX_BUILD and job.upgrade_id is None:
        raise NotCancellable(f"Job {job_id} keeps the gallery's searches fast; a worker would begin it again.")
    if job.kind == INDEX_BUILD:
        raise NotCancellable(f"Job {job_id} is a part of an upgrade: cancel upgrade {job.upgrade_id}.")
    if not change_jobs(session, Job.id == job_id, JobAction.CANCEL):
        raise NotCancellable(f"Job {job_id} has {job.state}; there is nothing left to cancel.")
    record(session, Act.JOB_CANCELLED, Subject("job", job_id), before={"kind": job.kind})
    session.refresh(job)
    return job


def pause_job(session: Session, job_id: int) -> Job:
    """Let an ingest rest until it is resumed; nothing is written for it once this has committed. A batch that was under
    way is begun again then. Raises `UnknownJob` (404) and `NotPausable` (409)."""
    return _change_ingest(session, job_id, JobAction.PAUSE, {JobState.PAUSED})


def resume_job(session: Session, job_id: int) -> Job:
    """Go on where the pause was. Raises `UnknownJob` (404) and `NotPausable` (409)."""
    job = _change_ingest(session, job_id, JobAction.RESUME, WORKING)
    send_after_commit(session, ADVANCE_INGEST, job_id)
    return job


def set_job_speed(session: Session, job_id: int, speed: float) -> Job:
    """Let each worker work `speed` (0 to 1) of the time on an ingest, from its next batch on; 0 stops it.

    Raises `UnknownJob` (404) and `NotPausable` (409).
    """
    job = _lock_ingest(session, job_id)
    if job.state not in UNFINISHED:
        raise NotPausable(f"Job {job_id} has {job.state}; there is nothing left to throttle.")
    job.speed, job.updated_at = speed, func.now()
    send_after_commit(session, ADVANCE_INGEST, job_id)
    return job


def _change_ingest(session: Session, job_id: int, action: JobAction, already: Collection[JobState]) -> Job:
    job = _lock_ingest(session, job_id)
    phases = {name: Phase.from_json(phase) for name, phase in job.progress.items()}
    progress = {
        name: replace(phase, eta_seconds=None).to_json() for name, phase in phases.items()
    }  # it rests, or begins
    if job.state not in already and not change_jobs(session, Job.id == job_id, action, progress=progress):
        raise NotPausable(f"Job {job_id} is {job.state}: that cannot be followed by {action}.")
    session.refresh(job)
    return job


def _lock_ingest(session: Session, job_id: int) -> Job:
    job = _lock_job(session, job_id)
    if job.kind != INGEST:
        raise NotPausable(f"Job {job_id} is no ingest of images; only these are paused and throttled.")
    return job


def _lock_job(session: Session, job_id: int) -> Job:
    """Hold the job's row, once it is known that whoever asks may know of it."""
    get_job(session, job_id)
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise UnknownJob(f"There is no job {job_id}.")
    return job


def get_job(session: Session, job_id: int) -> Job:
    """Return the job, or raise `UnknownJob` (404), also for one of a gallery that the key is not for."""
    job = session.get(Job, job_id)
    if job is None or not sees_job(session, job):
        raise UnknownJob(f"There is no job {job_id}.")
    return job


def list_jobs(session: Session, after_id: int, limit: int) -> list[Job]:
    """Return up to `limit` jobs with ids above `after_id`, by id."""
    return list(session.scalars(select(Job).where(Job.id > after_id, own_jobs()).order_by(Job.id).limit(limit)))


def latest_jobs(session: Session, before_id: int | None, limit: int) -> list[Job]:
    """Return up to `limit` jobs with ids below `before_id` if there is one, newest first."""
    query = select(Job).where(own_jobs()).order_by(Job.id.desc()).limit(limit)
    return list(session.scalars(query if before_id is None else query.where(Job.id < before_id)))
