"""Jobs: the record of long work that a client may look at."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from service.domain.job_state import TRANSITIONS, UNFINISHED, JobAction, JobState
from service.errors import Conflict, NotFound
from service.tables import Job, JobKind

TRAINING: JobKind = "transformation_training"
INDEX_BUILD: JobKind = "index_build"


@dataclass(frozen=True)
class BuildProgress:
    """How many rows the index has that a job builds."""

    done: int
    total: int


class UnknownJob(NotFound):
    """No job has this id."""


class NotCancellable(Conflict):
    """The job has ended, or is a part of something else."""


def start_job(
    session: Session, kind: JobKind, gallery_id: int, generation_id: int | None, upgrade_id: int | None
) -> int:
    """Record that a job runs and return its id."""
    job = Job(
        kind=kind, state=JobState.RUNNING, gallery_id=gallery_id, generation_id=generation_id, upgrade_id=upgrade_id
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
    recorded = running.values(progress=asdict(progress), updated_at=func.now()).returning(Job.id)
    return session.scalar(recorded) is not None


def succeed_job(session: Session, job_id: int, result: dict[str, Any]) -> bool:
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
    """Give a training up; nothing of it is kept. A worker stops at its next step, and can register nothing any more.

    Raises `UnknownJob` (404), and `NotCancellable` (409) for a job that has ended otherwise, or that builds an index.
    """
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or job.state is JobState.CANCELLED:
        return get_job(session, job_id)
    if job.kind != TRAINING and job.upgrade_id is None:
        raise NotCancellable(f"Job {job_id} keeps the gallery's searches fast; a worker would begin it again.")
    if job.kind != TRAINING:
        raise NotCancellable(f"Job {job_id} is a part of an upgrade: cancel upgrade {job.upgrade_id}.")
    if not change_jobs(session, Job.id == job_id, JobAction.CANCEL):
        raise NotCancellable(f"Job {job_id} has {job.state}; there is nothing left to cancel.")
    session.refresh(job)
    return job


def get_job(session: Session, job_id: int) -> Job:
    """Return the job, or raise `UnknownJob` (404)."""
    job = session.get(Job, job_id)
    if job is None:
        raise UnknownJob(f"There is no job {job_id}.")
    return job


def list_jobs(session: Session, after_id: int, limit: int) -> list[Job]:
    """Return up to `limit` jobs with ids above `after_id`, by id."""
    return list(session.scalars(select(Job).where(Job.id > after_id).order_by(Job.id).limit(limit)))
