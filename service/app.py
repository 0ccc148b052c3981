"""The FastAPI application: `create_app(settings)` mounts the routers; when it starts, it makes the parts and starts the
replicas."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.access.known_keys import KnownKeys
from service.access.quotas import QuotaBook
from service.api import (
    artifacts,
    audit,
    backfills,
    docs_page,
    embeddings,
    erasures,
    examples,
    external,
    galleries,
    health,
    image_references,
    images,
    items,
    jobs,
    judging,
    keys,
    model_versions,
    quality,
    query_sets,
    records,
    search,
    transformations,
    upgrades,
)
from service.api.access import AccessMiddleware, describe_keys
from service.api.admission import Admission
from service.api.browsers import BrowserMiddleware
from service.api.console import routes as console
from service.api.content_encoding import ContentEncodingMiddleware
from service.api.dependencies import Parts
from service.api.event_streams import EventStreams
from service.api.head import HeadMiddleware
from service.api.idempotency import IdempotencyMiddleware
from service.api.limits import BodyLimitMiddleware, RequestIdMiddleware, RoomMiddleware
from service.api.parameters import refuse_unknown_parameters
from service.api.prefixes import PrefixMiddleware
from service.api.problems import install_problem_handlers
from service.api.process_metrics import metrics_port
from service.api.refusals import add_refusals
from service.api.request_logs import name_subject
from service.api.request_metrics import HandlerMiddleware, RequestMetricsMiddleware
from service.blobs import BlobStore
from service.connectors.named import NamedStores, OpenStore
from service.connectors.opening import open_store
from service.db import Database, create_database_engine
from service.domain.figures import Figures
from service.domain.gallery.exports import Exports
from service.domain.gallery.writes import GalleryWriter
from service.domain.indexes.choice import choose_engine
from service.domain.indexes.query_samples import QuerySamples
from service.domain.judging.drift import DriftWatch
from service.domain.judging.shadowed_queries import ShadowDraw, Shadowing
from service.domain.search.canary_counts import CanaryCounts
from service.domain.search.described_items import DescribedItems
from service.domain.search.queries import Search
from service.domain.search.rates import SearchRates
from service.domain.upgrade.actions import UpgradeActions
from service.gallery_news import GalleryNews
from service.image_sources.source import ImageSource
from service.index.replica import Replicas
from service.networks.encoders import Encoders
from service.networks.micro_batching import ImageQueryMetrics
from service.networks.transformations import TransformationNetworks
from service.queue import TaskQueue, celery_application
from service.settings import Settings

DESCRIPTION = """Holds image galleries as embeddings and side-information, and moves a whole gallery into a new
embedding model's space without touching an image."""
# What is under /v1, in the order of the document but for searches: routes are tried one after the other, and these are
# asked for the most.
RESOURCES = (
    search,
    model_versions,
    transformations,
    artifacts,
    galleries,
    images,
    image_references,
    embeddings,
    quality,
    items,
    upgrades,
    backfills,
    judging,
    examples,
    external,
    query_sets,
    jobs,
    audit,
    records,
    keys,
    erasures,
)


def make_parts(settings: Settings, open_store: OpenStore = open_store) -> Parts:
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
    canary_counts = CanaryCounts(database, shadowing.run_later)
    drift = DriftWatch(database, encoders, settings.probe_check_images, settings.probe_check_every_seconds)

    return Parts(
        settings,
        database,
        KnownKeys(database, settings.admin_key),
        QuotaBook(settings, database),
        blobs,
        engine,
        replicas,
        GalleryWriter(database, encoders, replicas, settings),
        Exports(database, settings.exports_at_once),
        Search(
            database,
            encoders,
            replicas,
            samples,
            shadowing,
            image_query_metrics,
            canary_counts,
            DescribedItems(settings.described_items_bytes),
            SearchRates(),
        ),
        samples,
        shadowing,
        drift,
        image_query_metrics,
        image_queries,
        EventStreams(settings.max_event_streams, settings.follow_every_seconds),
        ImageSource(settings),
        UpgradeActions(database, engine, replicas, settings, lambda: TransformationNetworks(database, blobs, settings)),
        Figures(database, queue, replicas, drift, settings),
        NamedStores(settings.stores, open_store),
    )


def serve_at_once(_: Parts) -> None:
    """Answer while galleries are still being loaded, as a process does that is alone on its port."""


def create_app(
    settings: Settings,
    make_parts: Callable[[Settings], Parts] = make_parts,
    before_serving: Callable[[Parts], None] = serve_at_once,
) -> FastAPI:
    """Return the application; it connects when it starts, not here. Nothing is answered before `before_serving`, which
    runs in a thread, has returned."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts = app.state.parts = make_parts(settings)
        async with _running(parts):
            await run_in_threadpool(before_serving, parts)
            yield

    app = FastAPI(
        title="gallery-upgrade",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Traces alone, by the provider that `service.tracing` sets: metrics are Prometheus's, and logs our own.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "exclude": _is_looked_at},
        dependencies=[Depends(_begin)],
    )
    install_problem_handlers(app)
    for resource in RESOURCES:
        app.include_router(resource.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(console.router)
    app.include_router(docs_page.router)
    add_refusals(app)
    describe_keys(app)
    _add_middleware(app, settings)
    return app


async def _begin(request: Request) -> None:
    """Before every endpoint: one dependency, since to solve one takes longer than what is done here, and not `def`,
    whose context would end with it."""
    name_subject(request)
    refuse_unknown_parameters(request)


@asynccontextmanager
async def _running(parts: Parts) -> AsyncIterator[None]:
    """Have the threads of the parts work, and close what the parts hold at the end."""
    news = GalleryNews(parts.database.engine.url, parts.replicas.note_change)
    await run_in_threadpool(parts.replicas.start)
    if parts.settings.listen:
        news.start()
    parts.query_samples.start()
    parts.shadowing.start()
    parts.drift.start()
    parts.figures.start()
    with metrics_port(parts):
        yield
    await run_in_threadpool(parts.figures.stop)
    await run_in_threadpool(news.stop)
    await run_in_threadpool(parts.drift.stop)
    await run_in_threadpool(parts.shadowing.stop)
    await run_in_threadpool(parts.replicas.stop)
    await run_in_threadpool(parts.query_samples.stop)
    parts.engine.close()
    parts.database.engine.dispose()


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """The last one added runs first: a request is counted, gets its id, is not a foreign page's, gets its prefix, may
    be made by its key, gets its decoded body, then its limits, then its idempotency."""
    app.add_middleware(HandlerMiddleware)
    app.add_middleware(IdempotencyMiddleware)
    app.add_middleware(RoomMiddleware, settings=settings)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=settings.max_request_bytes, max_json_bytes=settings.max_json_bytes
    )
    app.add_middleware(ContentEncodingMiddleware, max_bytes=settings.max_request_bytes)
    app.add_middleware(AccessMiddleware, needs_key=settings.auth == "on")
    app.add_middleware(HeadMiddleware)
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.proxies)
    app.add_middleware(PrefixMiddleware, root_path=settings.root_path, proxies=settings.proxies)
    app.add_middleware(BrowserMiddleware, hosts=settings.host_names, origins=settings.allowed_origins)
    app.add_middleware(RequestIdMiddleware)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "X-Request-ID", "Idempotent-Replay"],
        )
    app.add_middleware(RequestMetricsMiddleware)


def _is_looked_at(scope: Scope) -> bool:
    """Whether a request is one of those that operators' programs repeat all day."""
    return scope["path"] in ("/livez", "/readyz", "/metrics")
