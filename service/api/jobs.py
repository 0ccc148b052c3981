"""`/v1/jobs`: long work that is not an upgrade, or a part of one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from service.api.dependencies import IdPath, Parts, PartsDependency, SessionDependency
from service.api.event_streams import EventStream, TooManyStreams
from service.api.json_bodies import JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.speed import NewSpeed
from service.domain import jobs
from service.domain.ingest.references import list_rejected as list_rejected_images
from service.domain.job_state import UNFINISHED
from service.domain.jobs import NotCancellable, NotPausable, UnknownJob
from service.tables import Job

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)


class JobView(BaseModel):
    id: int
    kind: str
    state: str
    generation: int | None
    upgrade: int | None
    request: dict[str, Any] | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    speed: float
    created_at: datetime
    finished_at: datetime | None


class RejectedImageView(BaseModel):
    id: str
    image_uri: str
    reason: str


def _known_job(job_id: IdPath, session: SessionDependency) -> int:
    return jobs.get_job(session, job_id).id


def job_view(job: Job) -> JobView:
    """Return what clients see of a job."""
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        generation=job.generation_id,
        upgrade=job.upgrade_id,
        request=job.request,
        progress=job.progress,
        result=job.result,
        error=job.error,
        speed=job.speed,
        created_at=job.created_at,
        finished_at=job.finished_at,
    )


@router.get("")
def list_jobs(session: SessionDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[JobView]:
    """Return jobs, oldest first."""
    found = jobs.list_jobs(session, decode_cursor(cursor), limit + 1)
    return page_of([job_view(job) for job in found], [job.id for job in found], limit)


@router.get("/{job_id}", responses=refusals(UnknownJob))
def get_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Return one job."""
    return job_view(jobs.get_job(session, job_id))


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses=refusals(UnknownJob, TooManyStreams))
async def stream_events(
    job_id: Annotated[int, Depends(_known_job)], parts: PartsDependency, stream: EventStream
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job's state (`state`, first as it is and then whenever it changed) and its progress (`progress`,
    likewise); ends when the job has ended."""
    state: str | None = None
    progress: dict[str, Any] | None = None
    while True:
        job = await stream.look(("job", job_id), partial(_look, parts, job_id))
        if job.progress != progress:
            progress = job.progress
            yield ServerSentEvent(event="progress", data=progress)
        if job.state != state:
            state = job.state
            yield ServerSentEvent(event="state", data=job_view(job).model_dump(mode="json", exclude={"progress"}))
        if state not in UNFINISHED:
            return
        await asyncio.sleep(stream.look_every_seconds)


def _look(parts: Parts, job_id: int) -> Job:
    with parts.database.session_scope() as session:
        return jobs.get_job(session, job_id)


@router.post("/{job_id}/cancel", responses=refusals(UnknownJob, NotCancellable))
def cancel_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Give a training or an ingest up; cancelling it again is no error. 409 for a job that has ended or is a part of an
    upgrade. What an ingest has stored stays."""
    return job_view(jobs.cancel_job(session, job_id))


@router.patch("/{job_id}", responses=refusals(UnknownJob, NotPausable))
def set_speed(job_id: IdPath, new: NewSpeed, session: SessionDependency) -> JobView:
    """Throttle an ingest, from each worker's next batch on; 0 stops it."""
    return job_view(jobs.set_job_speed(session, job_id, new.speed))


@router.post("/{job_id}/pause", responses=refusals(UnknownJob, NotPausable))
def pause_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Let an ingest rest; nothing of it is stored after the answer. 409 for other jobs, and for one that has ended."""
    return job_view(jobs.pause_job(session, job_id))


@router.post("/{job_id}/resume", responses=refusals(UnknownJob, NotPausable))
def resume_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Go on where the pause was."""
    return job_view(jobs.resume_job(session, job_id))


@router.get("/{job_id}/rejected", responses=refusals(UnknownJob))
def list_rejected(
    job_id: IdPath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[RejectedImageView]:
    """Return the images that an ingest rejected so far, in the order of its list."""
    found = list_rejected_images(session, job_id, decode_cursor(cursor) - 1, limit + 1)
    views = [RejectedImageView(id=row.external_id, image_uri=row.image_uri, reason=row.reason or "") for row in found]
    return page_of(views, [row.position + 1 for row in found], limit)
