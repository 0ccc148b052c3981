"""The Celery application that `celery -A workers.app worker` runs, and the parts that its tasks share.

One process per device, `--pool solo`: networks are loaded in the process that runs them, never before a fork.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from celery import Celery

from service import crash_points
from service.blobs import BlobStore
from service.connectors.named import NamedStores, OpenStore
from service.connectors.opening import open_store
from service.db import Database, create_database_engine
from service.domain.gallery.writes import GalleryWriter, NobodyFollows
from service.domain.indexes.choice import choose_engine
from service.domain.indexes.engine import IndexEngine
from service.image_sources.source import ImageSource
from service.logs import configure_logging
from service.networks.encoders import Encoders
from service.networks.transformations import TransformationNetworks, computing_at_once
from service.queue import TaskQueue, celery_application
from service.settings import Settings
from service.tracing import start_tracing
from workers.throttle import Throttle
from workers.training_memory import TrainingMemory


@dataclass(frozen=True)
class WorkerParts:
    """Everything one worker process holds."""

    settings: Settings
    database: Database
    blobs: BlobStore
    networks: TransformationNetworks
    engine: IndexEngine
    writer: GalleryWriter
    images: ImageSource
    stores: NamedStores
    throttle: Throttle = field(default_factory=Throttle)
    ingest_throttle: Throttle = field(default_factory=Throttle)
    training: TrainingMemory = field(default_factory=TrainingMemory)
    backfill_throttle: Throttle = field(default_factory=Throttle)
    external_throttle: Throttle = field(default_factory=Throttle)
    # Set while this process works on a task: it asks for its next slice itself, and its sweep is silent.
    working: threading.Event = field(default_factory=threading.Event)


def make_worker_parts(settings: Settings, application: Celery, open_store: OpenStore = open_store) -> WorkerParts:
    """Connect to the database, the blob store and the index server that `settings` names."""
    if settings.database_url is None:
        raise ValueError("GALLERY_DATABASE_URL is not set; `gallery-upgrade serve` sets it for its worker")
    database = Database(create_database_engine(settings.database_url, pool_size=4), TaskQueue(application))
    blobs = BlobStore(settings.blob_location)
    networks = TransformationNetworks(database, blobs, settings)
    writer = GalleryWriter(database, Encoders(blobs, settings), NobodyFollows(), settings)
    engine = choose_engine(database, blobs, settings)
    stores = NamedStores(settings.stores, open_store)
    return WorkerParts(settings, database, blobs, networks, engine, writer, ImageSource(settings), stores)


@lru_cache(maxsize=1)
def worker_parts() -> WorkerParts:
    """Return this process's parts, made at the first task."""
    share_cores(settings)
    return make_worker_parts(settings, app)


def share_cores(settings: Settings) -> None:
    """Give each of the threads that compute at a time its part of the process's cores; called once."""
    torch.set_num_threads(max(1, torch.get_num_threads() // computing_at_once(settings)))


@contextmanager
def all_cores(settings: Settings) -> Iterator[None]:
    """Let one computation have the cores that batches of an upgrade share."""
    shared = torch.get_num_threads()
    torch.set_num_threads(shared * computing_at_once(settings))
    try:
        yield
    finally:
        torch.set_num_threads(shared)


settings = Settings()
configure_logging(settings.log_format)
start_tracing("gallery-upgrade-worker")
crash_points.arm(settings.crash_at)
app = celery_application(settings)
app.conf.imports = ("workers.tasks", "workers.sweep", "workers.metrics")
