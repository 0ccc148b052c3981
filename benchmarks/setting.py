"""What benchmarks share: a service in a temporary folder, and a gallery of random vectors ready to be upgraded."""

import io
import logging
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import func, select, text
from torch import nn

from migrations import upgrade_database
from models.artifacts import save_network
from models.backbones import ConvEncoder
from models.transformation import Transformation as TransformationNetwork
from service.db import create_database_engine, driver_connection
from service.domain.gallery.galleries import WantedGallery, create_gallery
from service.domain.gallery.generations import StoredGeneration, get_stored_generation
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import State
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from service.tables import Gallery, ModelVersion, Transformation, UpgradeBatch
from service.vectors.copy import write_rows
from service.vectors.rows import EmbeddingRows, Origin
from workers.app import WorkerParts, make_worker_parts, share_cores
from workers.upgrading import advance_upgrade

Vectors = NDArray[np.float32]
_ROWS_AT_ONCE = 100_000
_Found = TypeVar("_Found")


def machine() -> str:
    """Return a line that says where the figures come from."""
    with Path("/proc/cpuinfo").open() as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    return f"{len(names)} x {names[0]}, torch {torch.__version__}, Python {platform.python_version()}"


def device_name(device: str) -> str:
    return "the CPU" if device == "cpu" else torch.cuda.get_device_name()


def paper_sized_transformation(dim: int, seed: int) -> TransformationNetwork:
    """Return an h or g of the paper's size whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    network = TransformationNetwork(dim, dim, dim)
    network(torch.randn(64, dim), torch.randn(64, dim))
    return network.eval()


@contextmanager
def worker_with_servers(*, apart: bool = False, **own_settings: Any) -> Iterator[WorkerParts]:
    """Embedded servers with an empty database, and a worker's parts on them. `apart`: the worker, which is this
    process, has half of the cores, and the servers have the others."""
    logging.getLogger().setLevel(logging.WARNING)
    cores = sorted(os.sched_getaffinity(0))
    if apart:
        _stay_on(cores[len(cores) // 2 :])  # what is started inherits it
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        EmbeddedServers(Path(folder) / "servers") as servers,
    ):
        if apart:
            _stay_on(cores[: len(cores) // 2])
        settings = Settings(
            data=Path(folder),
            database_url=servers.database_url,
            broker_url=servers.broker_url,
            # By default an index in seconds, and none beside what is measured: most of it ends before one is needed.
            **{"flat_below_rows": 10**9, "index_file_from_rows": 10**9, **own_settings},
        )

        engine = create_database_engine(servers.database_url)
        upgrade_database(engine)
        engine.dispose()

        share_cores(settings)
        parts = make_worker_parts(settings, celery_application(settings))
        try:
            yield parts
        finally:
            parts.database.engine.dispose()


def _stay_on(cores: Sequence[int]) -> None:
    """Bind every thread of this process; numpy and torch have made some already."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def run_batches(parts: WorkerParts, upgrade_id: int) -> tuple[float, float]:
    """Run an upgrade until all its rows are transformed and verified; return when the first batch was planned and the
    last one done, in seconds since 1970."""
    while _state(parts, upgrade_id) in (State.PLANNED, State.TRANSFORMING):
        advance_upgrade(parts, upgrade_id)
    with parts.database.session_scope() as session:
        began = get_upgrade(session, upgrade_id).batches_planned_at
        ended = session.scalars(
            select(func.max(UpgradeBatch.done_at)).where(UpgradeBatch.upgrade_id == upgrade_id)
        ).one()
    assert began is not None
    assert ended is not None
    return began.timestamp(), ended.timestamp()


def _state(parts: WorkerParts, upgrade_id: int) -> str:
    with parts.database.session_scope() as session:
        return get_upgrade(session, upgrade_id).state


def register_versions(parts: WorkerParts, dim: int, network: nn.Module | None = None) -> None:
    """Register v1 and v2 of `dim` dimensions each for φ and ψ, all the same network, a small one unless another is
    given, and (h, g) of the paper's size."""
    encoder = parts.blobs.put(save_network(network or ConvEncoder(8, dim)))
    networks = [parts.blobs.put(save_network(paper_sized_transformation(dim, seed))) for seed in range(2)]

    with parts.database.session_scope() as session:
        versions = [
            ModelVersion(
                name=name,
                embedding_dim=dim,
                side_information_dim=dim,
                normalize=False,
                preprocessing={"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
                embedding_model_digest=encoder,
                embedding_model_kind="safetensors",
                side_information_model_digest=encoder,
                side_information_model_kind="safetensors",
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
    """Give gallery `name` `items` random vectors; see `import_vectors`."""
    generator = np.random.default_rng(first)
    for start in range(first, first + items, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, first + items - start)
        embedding, side_information = (generator.standard_normal((count, dim), np.float32) for _ in range(2))
        import_vectors(parts, name, embedding, side_information, start)


def import_vectors(
    parts: WorkerParts, name: str, embedding: Vectors, side_information: Vectors, first: int = 0
) -> StoredGeneration:
    """Create gallery `name` under v1 if it is not there, and give it (N, D) and (N, S) vectors as items `item-<n>`, n
    from `first` on. Return its active generation, with ids of items in the order of n."""
    with parts.database.session_scope() as session:
        gallery = session.query(Gallery).filter_by(name=name).one_or_none()
        if gallery is None:
            gallery = create_gallery(session, WantedGallery(name, "v1", "l2", "float16", thumbnails=False))
        stored = get_stored_generation(session, gallery.id, gallery.active_generation_id or 0)

        for start in range(0, len(embedding), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            count = len(embedding[part])
            revision = gallery.revision
            ids = session.scalars(
                text(
                    "INSERT INTO items (gallery_id, external_id, revision)"
                    " SELECT :gallery, 'item-' || (:start + n), :revision + n + 1 FROM generate_series(0, :count - 1) n"
                    " RETURNING id"
                ),
                {"gallery": gallery.id, "start": first + start, "revision": revision, "count": count},
            ).all()

            rows = EmbeddingRows(
                item_id=np.array(ids, np.int64),
                revision=np.arange(revision + 1, revision + count + 1),
                origin=np.full(count, Origin.IMPORTED, np.int16),
                hops=np.zeros(count, np.int16),
                uncertainty=np.zeros(count, np.float32),
                embedding=embedding[part].astype(np.float16),
                side_information=side_information[part].astype(np.float16),
            )
            write_rows(driver_connection(session), stored.table, rows, stored.vector_format)
            gallery.revision = revision + count
            gallery.items += count
    return stored


def random_image(seed: int) -> bytes:
    """Return a PNG file of 32 x 32 pixels of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def vacuum(parts: WorkerParts) -> None:
    """Leave nothing for autovacuum to do while something is measured."""
    with parts.database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))


def commit() -> str:
    """Return the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def median_and_range(values: Sequence[float], form: str) -> tuple[str, str]:
    """Return two cells of a table."""
    return f"{statistics.median(values):{form}}", f"{min(values):{form}} to {max(values):{form}}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a page."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def peak_memory_of(work: Callable[[], _Found]) -> tuple[_Found, int]:
    """Return what the work returns, and the bytes that it took at its largest over what was resident before."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident_bytes("VmRSS")
    found = work()
    return found, _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
