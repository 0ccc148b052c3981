"""`/v1/jobs`: long work that is not an upgrade, or a part of one."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.dependencies import IdPath, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.domain import jobs
from service.tables import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobView(BaseModel):
    id: int
    kind: str
    state: str
    generation: int | None
    upgrade: int | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


def _view(job: Job) -> JobView:
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        generation=job.generation_id,
        upgrade=job.upgrade_id,
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
    return page_of([_view(job) for job in found], [job.id for job in found], limit)


@router.get("/{job_id}")
def get_job(job_id: IdPath, session: SessionDependency) -> JobView:
    """Return one job."""
    return _view(jobs.get_job(session, job_id))
