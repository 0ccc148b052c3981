"""The FastAPI application: `create_app(settings)` mounts the routers; when it starts, it makes the parts and starts the
replicas."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from service.api import (
    console,
    embeddings,
    examples,
    galleries,
    health,
    images,
    items,
    jobs,
    judging,
    model_versions,
    query_sets,
    search,
    transformations,
    upgrades,
)
from service.api.admission import Admission
from service.api.dependencies import Parts
from service.api.idempotency import IdempotencyMiddleware
from service.api.limits import BodyLimitMiddleware, RequestIdMiddleware
from service.api.problems import install_problem_handlers
from service.blobs import BlobStore
from service.db import Database, create_database_engine
from service.domain.gallery.writes import GalleryWriter
from service.domain.indexes.choice import choose_engine
from service.domain.indexes.query_samples import QuerySamples
from service.domain.judging.shadowed_queries import ShadowDraw, Shadowing
from service.domain.search.queries import Search
from service.domain.upgrade.actions import UpgradeActions
from service.index.replica import Replicas
from service.networks.encoders import Encoders
from service.networks.micro_batching import ImageQueryMetrics
from service.networks.transformations import TransformationNetworks
from service.queue import TaskQueue, celery_application
from service.settings import Settings

DESCRIPTION = """Holds image galleries as embeddings and side-information, and moves a whole gallery into a new
embedding model's space without touching an image."""


def make_parts(settings: Settings) -> Parts:
    """Connect to the database, the broker, the blob store and the index server that `settings` names."""
    if settings.database_url is None:
        raise ValueError("Settings.database_url is not set")

    queue = TaskQueue(celery_application(settings))
    database = Database(create_database_engine(settings.database_url), queue)
    blobs = BlobStore(settings.blob_location)

    image_query_metrics = ImageQueryMetrics()
    encoders = Encoders(blobs, settings, image_query_metrics)
    image_queries = Admission(settings.queries_at_once, settings.queries_waiting, image_query_metrics)
    engine = choose_engine(database, blobs, settings)
    replicas = Replicas(engine.follow(encoders), settings.follow_every_seconds)
    samples = QuerySamples(database, settings.query_sample_items)
    draw = ShadowDraw(settings.shadow_share, settings.shadow_per_second)
    shadowing = Shadowing(database, encoders, draw, settings.shadowed_query_items)

    return Parts(
        settings,
        database,
        blobs,
        engine,
        replicas,
        GalleryWriter(database, encoders, replicas, settings),
        Search(database, encoders, replicas, samples, shadowing),
        samples,
        shadowing,
        image_query_metrics,
        image_queries,
        UpgradeActions(database, engine, replicas, settings, lambda: TransformationNetworks(database, blobs, settings)),
    )


def create_app(settings: Settings, make_parts: Callable[[Settings], Parts] = make_parts) -> FastAPI:
    """Return the application; it connects when it starts, not here."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts = app.state.parts = make_parts(settings)
        await run_in_threadpool(parts.replicas.start)
        parts.query_samples.start()
        parts.shadowing.start()
        yield
        await run_in_threadpool(parts.shadowing.stop)
        await run_in_threadpool(parts.replicas.stop)
        await run_in_threadpool(parts.query_samples.stop)
        parts.engine.close()
        parts.database.engine.dispose()

    app = FastAPI(title="gallery-upgrade", version="1", description=DESCRIPTION, lifespan=lifespan)
    install_problem_handlers(app)
    for module in (
        model_versions,
        transformations,
        galleries,
        images,
        embeddings,
        search,
        items,
        upgrades,
        judging,
        examples,
        query_sets,
        jobs,
    ):
        app.include_router(module.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(console.router)
    # The last one added runs first: a request gets its id, then its limit, then its idempotency.
    app.add_middleware(IdempotencyMiddleware)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=settings.max_request_bytes, max_json_bytes=settings.max_json_bytes
    )
    app.add_middleware(RequestIdMiddleware)
    return app
