"""What benchmarks share: a service in a temporary folder, and a gallery of random vectors ready to be upgraded."""

import logging
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import text

from migrations import upgrade_database
from models.artifacts import save_network
from models.transformation import Transformation as TransformationNetwork
from service.db import create_database_engine, driver_connection
from service.domain.galleries import create_gallery
from service.domain.generations import get_stored_generation
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from service.tables import Gallery, ModelVersion, Transformation
from service.vectors.copy import write_rows
from service.vectors.rows import EmbeddingRows, Origin
from workers.app import WorkerParts, make_worker_parts

_ROWS_AT_ONCE = 100_000


def machine() -> str:
    """Return a line that says where the figures come from."""
    with open("/proc/cpuinfo") as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    return f"{len(names)} x {names[0]}, torch {torch.__version__}, Python {platform.python_version()}"


@contextmanager
def worker_with_servers() -> Iterator[WorkerParts]:
    """Embedded servers with an empty database, and a worker's parts on them."""
    logging.getLogger().setLevel(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        EmbeddedServers(Path(folder) / "servers") as servers,
    ):
        settings = Settings(
            data=Path(folder),
            database_url=servers.database_url,
            broker_url=servers.broker_url,
            task_slice_seconds=1e-3,  # one step per call of advance_upgrade
        )
        engine = create_database_engine(servers.database_url)
        upgrade_database(engine)
        engine.dispose()
        parts = make_worker_parts(settings, celery_application(settings))
        try:
            yield parts
        finally:
            parts.database.engine.dispose()


def register_versions(parts: WorkerParts, dim: int) -> None:
    """Register v1 and v2 of `dim` dimensions each for φ and ψ, without encoders, and (h, g) of the paper's size."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = TransformationNetwork(dim, dim, dim)
        network(torch.randn(64, dim), torch.randn(64, dim))  # statistics that are not those of a fresh BatchNorm
        networks.append(parts.blobs.put(save_network(network.eval())))
    with parts.database.session_scope() as session:
        versions = [
            ModelVersion(
                name=name,
                embedding_dim=dim,
                side_information_dim=dim,
                normalize=False,
                preprocessing={},
                embedding_model_digest="",
                embedding_model_kind="safetensors",
            )
            for name in ("v1", "v2")
        ]
        session.add_all(versions)
        session.flush()  # their ids are needed
        session.add(
            Transformation(
                from_version_id=versions[0].id,
                to_version_id=versions[1].id,
                h_digest=networks[0],
                h_kind="safetensors",
                g_digest=networks[1],
                g_kind="safetensors",
            )
        )


def fill_gallery(parts: WorkerParts, name: str, items: int, dim: int, first: int = 0) -> None:
    """Create gallery `name` under v1 if it is not there, and give it `items` random vectors."""
    generator = np.random.default_rng(first)
    with parts.database.session_scope() as session:
        gallery = session.query(Gallery).filter_by(name=name).one_or_none()
        if gallery is None:
            gallery = create_gallery(session, name, "v1", "l2", "float16", thumbnails=False)
        stored = get_stored_generation(session, gallery.id, gallery.active_generation_id or 0)
        for start in range(first, first + items, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, first + items - start)
            revision = gallery.revision
            ids = session.scalars(
                text(
                    "INSERT INTO items (gallery_id, external_id, revision)"
                    " SELECT :gallery, 'item-' || (:start + n), :revision + n + 1 FROM generate_series(0, :count - 1) n"
                    " RETURNING id"
                ),
                {"gallery": gallery.id, "start": start, "revision": revision, "count": count},
            ).all()
            rows = EmbeddingRows(
                item_id=np.array(ids, np.int64),
                revision=np.arange(revision + 1, revision + count + 1),
                origin=np.full(count, Origin.IMPORTED, np.int16),
                embedding=generator.standard_normal((count, dim), np.float32).astype(np.float16),
                side_information=generator.standard_normal((count, dim), np.float32).astype(np.float16),
            )
            write_rows(driver_connection(session), stored.table, rows, stored.vector_format)
            gallery.revision = revision + count
