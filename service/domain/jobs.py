"""Jobs: the record of long work that a client may look at."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.domain.phases import BuildProgress
from service.errors import Conflict, NotFound
from service.tables import Job

TRAINING = "transformation_training"
UNFINISHED = ("queued", "running")


class UnknownJob(NotFound):
    """No job has this id."""


class NotCancellable(Conflict):
    """The job has ended, or is a part of something else."""


def start_job(session: Session, kind: str, gallery_id: int, generation_id: int | None, upgrade_id: int | None) -> int:
    """Record that a job runs and return its id."""
    job = Job(kind=kind, state="running", gallery_id=gallery_id, generation_id=generation_id, upgrade_id=upgrade_id)
    session.add(job)
    session.flush()  # its id is the answer
    return job.id


def record_progress(session: Session, job_id: int, progress: BuildProgress) -> bool:
    """Record how far a job is; return whether it still runs, or its work is not wanted any more."""
    running = update(Job).where(Job.id == job_id, Job.state == "running")
    return (
        session.scalar(running.values(progress=asdict(progress), updated_at=func.now()).returning(Job.id)) is not None
    )


def finish_job(
    session: Session, job_id: int, *, result: dict[str, Any] | None = None, error: str | None = None
) -> None:
    """Record a job's result, or the sentence that says why it failed."""
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            state="failed" if error else "succeeded",
            result=result,
            error=error,
            finished_at=func.now(),
            updated_at=func.now(),
        )
    )


def withdraw_job(session: Session, job_id: int, reason: str) -> None:
    """Record that a job was given up for something more urgent: that is no failure."""
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(state="cancelled", error=reason, finished_at=func.now(), updated_at=func.now())
    )


def end_jobs_left_running(session: Session, generation_id: int) -> None:
    """Record that the jobs of a generation that still seem to run do not: the process that ran them died, or its work
    is not wanted any more."""
    session.execute(
        update(Job)
        .where(Job.generation_id == generation_id, Job.state == "running")
        .values(
            state="failed",
            error="It was cut off: its process died, or its upgrade ended.",
            finished_at=func.now(),
            updated_at=func.now(),
        )
    )


def cancel_job(session: Session, job_id: int) -> Job:
    """Give a training up; nothing of it is kept. A worker stops at its next step, and can register nothing any more.

    Raises `NotCancellable` (409) for a job that has ended otherwise, or that builds an index.
    """
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or job.state == "cancelled":
        return get_job(session, job_id)
    if job.kind != TRAINING and job.upgrade_id is None:
        raise NotCancellable(f"Job {job_id} keeps the gallery's searches fast; a worker would begin it again.")
    if job.kind != TRAINING:
        raise NotCancellable(f"Job {job_id} is a part of an upgrade: cancel upgrade {job.upgrade_id}.")
    if job.state not in UNFINISHED:
        raise NotCancellable(f"Job {job_id} has {job.state}; there is nothing left to cancel.")
    job.state, job.finished_at, job.updated_at = "cancelled", func.now(), func.now()
    session.flush()  # the times are the database's
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
