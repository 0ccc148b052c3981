"""Pages of what runs: jobs of every kind, backfills, and what workers have at hand."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.console.charts import loss_chart
from service.api.console.rendering import PageRoute, render
from service.api.dependencies import IdPath, SessionDependency
from service.domain import jobs
from service.domain.gallery.galleries import gallery_names
from service.domain.job_state import UNFINISHED
from service.domain.upgrade.upgrades import count_open_batches
from service.domain.upgrade.work_ahead import work_ahead
from service.tables import Json

router = APIRouter(route_class=PageRoute)
_JOBS_SHOWN = 100


@router.get("/console/jobs")
def show_jobs(
    request: Request, session: SessionDependency, before: Annotated[int | None, Query(ge=1, lt=2**63)] = None
) -> Response:
    """Show jobs, newest first, and what waits for workers."""
    found = jobs.latest_jobs(session, before, _JOBS_SHOWN + 1)
    return render(
        request,
        "pages/jobs.html",
        jobs=found[:_JOBS_SHOWN],
        has_more=len(found) > _JOBS_SHOWN,
        galleries=gallery_names(session),
        ahead=work_ahead(session),
        batches=count_open_batches(session),
    )


@router.get("/console/jobs/{job_id}")
def show_job(request: Request, job_id: IdPath, session: SessionDependency) -> Response:
    """Show one job as it is now."""
    job = jobs.get_job(session, job_id)
    return render(
        request,
        "pages/job.html",
        job=job,
        gallery=gallery_names(session).get(job.gallery_id or 0),
        charts={name: loss_chart(losses) for name, losses in _losses(job.progress).items()},
        is_unfinished=job.state in UNFINISHED,
        is_ingest=job.kind == jobs.INGEST,
        is_cancellable=job.kind != jobs.INDEX_BUILD and job.state in UNFINISHED,
    )


def _losses(progress: Json) -> dict[str, list[float]]:
    """Return the losses of a training's phases that have any, by their names."""
    phases = {name: phase for name, phase in progress.items() if isinstance(phase, dict)}
    return {name: phase["losses"] for name, phase in phases.items() if phase.get("losses")}
