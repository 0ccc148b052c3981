"""`/livez`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel

from service.api.dependencies import PartsDependency, SessionDependency
from service.db import ping
from service.domain.gallery.galleries import gallery_names
from service.domain.upgrade.upgrades import count_batches, count_upgrades
from service.errors import Unavailable

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


@router.get("/livez")
async def livez() -> Health:
    """Answer while the process runs, also when every thread is taken."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(parts: PartsDependency, session: SessionDependency) -> Health:
    """Answer once the replicas are loaded and the database answers; 503 otherwise."""
    ping(session)
    if not parts.replicas.is_loaded:
        raise Unavailable("The galleries are still being loaded.")
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(parts: PartsDependency, session: SessionDependency) -> Response:
    """Return metrics in the Prometheus text format: of rows and replicas, and of this process's image queries."""
    registry = CollectorRegistry()
    upgrades = Gauge("gallery_upgrades", "Upgrades by state", ["state"], registry=registry)
    for state, count in count_upgrades(session).items():
        upgrades.labels(state).set(count)
    batches = Gauge("gallery_upgrade_batches", "Batches of upgrades by state", ["state"], registry=registry)
    for state, count in count_batches(session).items():
        batches.labels(state).set(count)
    vectors = Gauge(
        "gallery_index_vectors", "Vectors in the active index of this process", ["gallery"], registry=registry
    )
    names = gallery_names(session)
    for gallery_id, size in parts.replicas.sizes().items():
        vectors.labels(names.get(gallery_id, str(gallery_id))).set(size)
    content = generate_latest(registry) + generate_latest(parts.image_query_metrics.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)
