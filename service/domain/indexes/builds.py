"""Building a generation's index file. A worker builds it: of an upgrade's next generation, so that API replicas load it
ahead of the cutover, and of any other when `service.domain.indexes.due` says so.

1. read the gallery's revision R, and the rows that lists are learnt from; then stream the rows that are current and no
   newer than R into the index, in many short transactions: whoever loads the file applies all changes since R (crash
   point `index.streamed`);
2. choose how wide it is searched by its recall against exact search, on a sample of the queries that the gallery is
   asked under the generation's model version, or of its rows where few were asked (`index.built`);
3. publish the file under a name of its own, with the generation's and the job's id: temporary name, fsync, rename,
   fsync of the folder (the steps of `service.index.files`, then `index.published`);
4. name it, its SHA-256 and R in the generation's row, and end the job (`index.named`);
5. remove the file that it replaces.
Until 4 the generation keeps the file that it had. A crash after 1 or 2 leaves nothing but a temporary file; after 3, a
file that no row names; after 4, the one that was replaced. `service.domain.indexes.removal` removes each of them, once
the next build of the generation has ended the job that seems to run.

Where only the width is to be chosen anew, the file that is there is opened instead of 1, and named again without 3 when
the width stays.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text, update

from service import logs
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.domain.gallery.generations import get_stored_generation
from service.domain.indexes.faiss_engine import sample_rows, stream_rows
from service.domain.indexes.milvus_engine import fill_collection
from service.domain.indexes.query_samples import draw_recall_sample
from service.domain.indexes.removal import index_file, remove_unneeded_files
from service.domain.jobs import end_jobs_left_running, finish_job, record_progress, start_job, withdraw_job
from service.domain.phases import BuildProgress
from service.domain.upgrade.upgrades import upgrade_needs_workers
from service.index.files import IndexFileError, build_index, read_index, save_index
from service.index.kinds import BuiltIndex, IndexKind, training_rows
from service.index.protocol import Metric
from service.index.recall import choose_width
from service.index.replica import GenerationGone
from service.settings import Settings
from service.tables import Gallery, Generation

if TYPE_CHECKING:
    from service.index.milvus import Collections

events = logs.Events(__name__)

_PROGRESS_SECONDS = 1.0
_Chunk = tuple[NDArray[np.int64], NDArray[np.float32]]

_FILE = "SELECT index_name, index_sha256, index_revision, index_parameters FROM generations WHERE id = :generation_id"


class GaveWay(Exception):
    """An upgrade needs the worker; the build is begun again later."""


@dataclass(frozen=True)
class _Built:
    index: BuiltIndex
    revision: int
    rows: int
    recall: dict[str, Any]
    published: tuple[str, str] | None = None  # the name and the digest of a file that is the same


def build_generation_index(
    database: Database,
    blobs: BlobStore,
    settings: Settings,
    gallery_id: int,
    generation_id: int,
    upgrade_id: int | None,
    collections: "Collections | None" = None,
    *,
    only_width: bool = False,
) -> dict[str, Any]:
    """Build, publish and name the generation's index file; return what was recorded about it.

    With `collections`, its collection is filled instead (`service.domain.indexes.milvus_engine`). With `only_width`,
    the rows of the file that is there stay, unless it cannot be read.

    Running it twice gives the same row: the second file replaces the first in one step. Its job records a failure.
    One process builds at a time (hold the upgrade's phase lock, or without an upgrade the rebuild lock), so a job that
    still seems to run is one whose process died. Raises `GenerationGone` soon after the generation was dropped, and
    without an upgrade `GaveWay` soon after one needs a worker.
    """
    with database.session_scope() as session:
        end_jobs_left_running(session, generation_id)
        job_id = start_job(session, "index_build", gallery_id, generation_id, upgrade_id)
    try:
        progress = _JobProgress(database, job_id, gives_way=upgrade_id is None)
        if collections is not None:
            parameters = fill_collection(database, collections, settings, gallery_id, generation_id, progress)
            with database.session_scope() as session:
                finish_job(session, job_id, result=parameters)
            return parameters
        built = _opened(database, blobs, settings, gallery_id, generation_id, progress) if only_width else None
        if built is None:
            built = _build(database, settings, gallery_id, generation_id, progress)
        crash_point("index.built")
        parameters = _publish(database, blobs, generation_id, job_id, built)
    except GaveWay as error:
        with database.session_scope() as session:
            withdraw_job(session, job_id, str(error))
        raise
    except Exception as error:
        with database.session_scope() as session:
            finish_job(session, job_id, error=f"{type(error).__name__}: {error}")
        raise
    remove_unneeded_files(database, blobs)
    events.info("index.published", generation_id=generation_id, **parameters)
    return parameters


def _publish(database: Database, blobs: BlobStore, generation_id: int, job_id: int, built: _Built) -> dict[str, Any]:
    """Do steps 3 and 4; return what was recorded."""
    if built.published is None:
        name = index_file(generation_id, job_id)
        digests: list[str] = []
        blobs.publish(name, lambda path: digests.append(save_index(built.index, path)))
        sha256 = digests[0]
    else:
        name, sha256 = built.published
    crash_point("index.published")
    parameters = {
        "kind": built.index.rows.kind,
        **built.index.rows.parameters,
        "rows": built.rows,
        "seconds": round(built.index.seconds, 3),
        **built.recall,
    }
    with database.session_scope() as session:
        if not record_progress(session, job_id, BuildProgress(built.rows, built.rows)):
            raise GenerationGone(f"The index of generation {generation_id} is not wanted any more.")
        session.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.state != "dropped")
            .values(
                index_name=name,
                index_sha256=sha256,
                index_revision=built.revision,
                index_parameters=parameters,
            )
        )
        finish_job(session, job_id, result=parameters)
    crash_point("index.named")
    return parameters


class _JobProgress:
    """Records, about once a second, how many rows the index has, and stops a build that nobody wants any more, or one
    that `gives_way` when an upgrade needs the worker."""

    def __init__(self, database: Database, job_id: int, *, gives_way: bool) -> None:
        self._database = database
        self._job_id = job_id
        self._gives_way = gives_way
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PROGRESS_SECONDS
        with self._database.session_scope() as session:
            if not record_progress(session, self._job_id, BuildProgress(done, total)):
                raise GenerationGone("The generation was dropped.")
            if self._gives_way and upgrade_needs_workers(session):
                raise GaveWay("It gave way to an upgrade, and is begun again when that needs no worker.")


def _build(
    database: Database, settings: Settings, gallery_id: int, generation_id: int, progress: Callable[[int, int], None]
) -> _Built:
    with database.session_scope() as session:
        gallery = session.get_one(Gallery, gallery_id)
        stored = get_stored_generation(session, gallery_id, generation_id)
        metric: Metric = gallery.metric  # type: ignore[assignment]  # the table's check allows only these
        count = session.scalar(text(f"SELECT count(*) FROM {stored.table}")) or 0
        sample = draw_recall_sample(session, stored, settings)
    dim = stored.vector_format.embedding_dim
    kind = _kind(gallery.index, count, settings)

    def rows() -> Iterator[_Chunk]:
        return stream_rows(database, stored, gallery.revision, settings.batch_items)

    with database.session_scope() as session:
        training = sample_rows(session, stored, training_rows(kind, dim, count), settings.batch_items).vectors
    built = build_index(metric, dim, _counted(rows(), count, progress), kind, training)
    crash_point("index.streamed")
    recall = choose_width(built, metric, sample, _watched(rows(), count, progress))
    return _Built(built, gallery.revision, built.index.ntotal, sample.describe(recall))


def _opened(
    database: Database,
    blobs: BlobStore,
    settings: Settings,
    gallery_id: int,
    generation_id: int,
    progress: Callable[[int, int], None],
) -> _Built | None:
    """Return the index of the generation's file with its width chosen anew, or None if the file cannot be read.

    Rows that changed since are compared as the file has them.
    """
    with database.session_scope() as session:
        gallery = session.get_one(Gallery, gallery_id)
        metric: Metric = gallery.metric  # type: ignore[assignment]  # the table's check allows only these
        stored = get_stored_generation(session, gallery_id, generation_id)
        name, sha256, revision, parameters = session.execute(text(_FILE), {"generation_id": generation_id}).one()
        sample = draw_recall_sample(session, stored, settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = blobs.fetch_file(name, Path(folder))
            built = read_index(path, metric, stored.vector_format.embedding_dim, sha256)
        except (IndexFileError, FileNotFoundError) as error:
            events.warning("index.unusable", generation_id=generation_id, error=str(error))
            return None
    before = built.rows.parameters
    rows = built.all_rows(stream_rows(database, stored, revision, settings.batch_items), settings.batch_items)
    recall = choose_width(built, metric, sample, _watched(rows, built.index.ntotal, progress))
    built = replace(built, seconds=parameters["seconds"])
    published = (name, sha256) if built.rows.parameters == before else None
    return _Built(built, revision, built.index.ntotal, sample.describe(recall), published)


def _kind(option: str, rows: int, settings: Settings) -> IndexKind:
    """Return the kind that a gallery's `index` option asks for."""
    if option == "auto":
        return "flat" if rows < settings.flat_below_rows else "hnsw"
    return option  # type: ignore[return-value]  # the table's check allows only kinds


def _counted(rows: Iterable[_Chunk], total: int, progress: Callable[[int, int], None]) -> Iterator[_Chunk]:
    done = 0
    for ids, vectors in rows:
        yield ids, vectors
        done += len(ids)
        progress(done, total)


def _watched(rows: Iterable[_Chunk], total: int, progress: Callable[[int, int], None]) -> Iterator[_Chunk]:
    """Read the rows again when all are in the index, and stop when the build is not wanted any more."""
    for chunk in rows:
        yield chunk
        progress(total, total)
