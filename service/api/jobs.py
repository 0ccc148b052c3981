"""`/v1/jobs`: long work that is not an upgrade, or a part of one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.api.dependencies import IdPath, Parts, PartsDependency, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.domain import jobs
from service.domain.job_state import UNFINISHED
from service.tables import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


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
    created_at: datetime
    finished_at: datetime | None


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
        created_at=job.created_at,
        finished_at=job.finished_at,
    )


@router.get("")
def list_jobs(session: SessionDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[JobView]:
    """Return jobs, oldest first."""
    found = jobs.list_jobs(session, decode_cursor(cursor), limit + 1)
    return page_of([job_view(job) for job in found], [job.id for job in found], limit)


@router.get("/{job_id}")
def get_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Return one job."""
    return job_view(jobs.get_job(session, job_id))


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def stream_events(
    job_id: Annotated[int, Depends(_known_job)], parts: PartsDependency
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job's state (`state`, first as it is and then whenever it changed) and its progress (`progress`,
    likewise); ends when the job has ended."""
    state: str | None = None
    progress: dict[str, Any] | None = None
    while True:
        job = await run_in_threadpool(_look, parts, job_id)
        if job.progress != progress:
            progress = job.progress
            yield ServerSentEvent(event="progress", data=progress)
        if job.state != state:
            state = job.state
            yield ServerSentEvent(event="state", data=job_view(job).model_dump(mode="json", exclude={"progress"}))
        if state not in UNFINISHED:
            return
        await asyncio.sleep(parts.settings.follow_every_seconds)


def _look(parts: Parts, job_id: int) -> Job:
    with parts.database.session_scope() as session:
        return jobs.get_job(session, job_id)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Give a training up; cancelling it again is no error. 409 for a job that has ended or is a part of an upgrade."""
    return job_view(jobs.cancel_job(session, job_id))
