"""`/livez`, `/readyz` and `/metrics`."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service import identity
from service.api.dependencies import PartsDependency, SessionDependency
from service.api.process_metrics import metrics_text
from service.api.refusals import refusals
from service.db import ping
from service.disk import shortage
from service.errors import Conflict, Forbidden, Unavailable
from service.identity import DEFAULT_TENANT, EVERY_GALLERY

router = APIRouter(tags=["health"])


_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}


class MetricsOfAll(Forbidden):
    """The key is of another tenant than the default one, or for some galleries alone."""


class MetricsOfOne(Conflict):
    """Several processes share the port, and whichever answers knows its own metrics alone."""


class Health(BaseModel):
    """`status` is ok, or no_room while nothing is stored because the disk has too little; `detail` says more."""

    status: Literal["ok", "no_room"]
    detail: str | None = None


@router.get("/livez")
async def livez() -> Health:
    """Answer while the process runs, also when every thread is taken."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(parts: PartsDependency, session: SessionDependency) -> Health:
    """Answer once the replicas are loaded, the database answers, and no encoder is found to give other embeddings here
    than it gave; 503 otherwise. A disk without room keeps queries from nothing: 200, and says so."""
    ping(session)
    if not parts.replicas.is_loaded:
        raise Unavailable("The galleries are still being loaded.")
    if not parts.drift.has_looked:
        raise Unavailable("The galleries' probe images are still being encoded.")
    if parts.drift.alarms:
        raise Unavailable(
            f"Encoders give other embeddings here than they gave, of {len(parts.drift.alarms)} galleries:"
            " `encoder.drifted` in the log names them."
        )
    lack = shortage(parts.settings)
    return Health(status="ok") if lack is None else Health(status="no_room", detail=lack)


@router.get("/metrics", response_class=Response, responses=_METRICS | refusals(MetricsOfAll, MetricsOfOne))
def metrics(parts: PartsDependency) -> Response:
    """Return metrics in the Prometheus text format: of this process and its requests, and what was last found in rows;
    docs/operations/metrics.md lists them. It asks no other server, and answers while the database is away. They are of
    all galleries and tenants: 403 for a key of another tenant than the default one, or for some galleries. Where
    several processes share the port it is 409: each serves its own on a port of its own, GALLERY_API_METRICS_PORT."""
    who = identity.current.get()
    if who.tenant != DEFAULT_TENANT or who.galleries != EVERY_GALLERY:
        raise MetricsOfAll(
            "Metrics are of every tenant and gallery: a key of the default tenant for all galleries reads them."
        )
    if parts.settings.processes > 1:
        raise MetricsOfOne(
            f"{parts.settings.processes} processes share this port, and each counts what it did itself: ask each on a"
            " port of its own, from GALLERY_API_METRICS_PORT on."
        )
    return Response(metrics_text(parts), media_type=CONTENT_TYPE_LATEST)
