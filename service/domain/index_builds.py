"""Building a generation's index file. A worker builds it once; API replicas load it ahead of the cutover.

1. read the gallery's revision R and stream the rows that are current, in one snapshot;
2. build the index and measure its recall on a sample against exact search;
3. publish the file under the generation's own name (temporary name, fsync, rename, fsync of the folder);
4. name it, its SHA-256 and R in the generation's row.
A crash after 1 or 2 leaves nothing; after 3, a file that no row names with its digest, replaced by the next build.
Files of dropped generations are removed by `remove_dropped_files`, which every worker's sweep calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.db import Database
from service.domain.following import read_current_rows
from service.domain.generations import StoredGeneration, get_stored_generation
from service.domain.jobs import finish_job, start_job
from service.index.faiss_index import BuiltIndex, FaissIndex
from service.index.files import build_index, measure_recall, save_index
from service.index.protocol import Metric
from service.settings import Settings
from service.tables import Gallery, Generation

events = logs.Events(__name__)


@dataclass(frozen=True)
class _Built:
    index: BuiltIndex
    revision: int
    rows: int
    recall: float


def build_generation_index(
    database: Database,
    blobs: BlobStore,
    settings: Settings,
    gallery_id: int,
    generation_id: int,
    upgrade_id: int,
) -> dict[str, Any]:
    """Build, publish and name the generation's index file; return what was recorded about it.

    Running it twice gives the same row: the second file replaces the first in one step. Its job records a failure.
    """
    with database.session_scope() as session:
        job_id = start_job(session, "index_build", gallery_id, generation_id, upgrade_id)
    try:
        built = _build(database, settings, gallery_id, generation_id)
        name = f"indexes/generation_{generation_id}.faiss"
        digests: list[str] = []
        blobs.publish(name, lambda path: digests.append(save_index(built.index, path)))
        parameters = {
            "kind": built.index.kind,
            **built.index.parameters,
            "rows": built.rows,
            "seconds": round(built.index.seconds, 3),
            "recall_at_10": built.recall,
        }
        with database.session_scope() as session:
            session.execute(
                update(Generation)
                .where(Generation.id == generation_id, Generation.state != "dropped")
                .values(
                    index_name=name,
                    index_sha256=digests[0],
                    index_revision=built.revision,
                    index_parameters=parameters,
                )
            )
            finish_job(session, job_id, result=parameters)
    except Exception as error:
        with database.session_scope() as session:
            finish_job(session, job_id, error=f"{type(error).__name__}: {error}")
        raise
    events.info("index.published", generation_id=generation_id, **parameters)
    return parameters


def _build(database: Database, settings: Settings, gallery_id: int, generation_id: int) -> _Built:
    with database.session_scope(snapshot=True) as session:
        gallery = session.get_one(Gallery, gallery_id)
        stored = get_stored_generation(session, gallery_id, generation_id)
        metric: Metric = gallery.metric  # type: ignore[assignment]  # the table's check allows only these
        count = session.scalar(text(f"SELECT count(*) FROM {stored.table}")) or 0
        dim = stored.vector_format.embedding_dim
        built = build_index(metric, dim, _vectors(session, stored, settings.rows_per_chunk), count)
        sample = _sample(session, stored, settings.recall_sample_items)
        index = FaissIndex(metric, dim, built)
        rows = _vectors(session, stored, settings.rows_per_chunk)
        recall = measure_recall(index, metric, sample, rows, k=10) if len(sample) else 1.0
        return _Built(built, gallery.revision, len(index), recall)


def _vectors(
    session: Session, stored: StoredGeneration, rows_per_chunk: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for rows in read_current_rows(session, stored, rows_per_chunk):
        yield rows.item_id, rows.embedding.astype(np.float32)


def _sample(session: Session, stored: StoredGeneration, count: int) -> NDArray[np.float32]:
    """Return up to `count` of the generation's own vectors, drawn at random, to ask the index with."""
    ids = session.scalars(
        text(f"SELECT item_id FROM {stored.table} ORDER BY random() LIMIT :count"), {"count": count}
    ).all()
    chunks = [
        rows.embedding.astype(np.float32) for rows in read_current_rows(session, stored, count, np.array(ids, np.int64))
    ]
    return np.concatenate(chunks) if chunks else np.empty((0, stored.vector_format.embedding_dim), np.float32)


def remove_dropped_files(database: Database, blobs: BlobStore) -> None:
    """Remove the index files of generations that have no table any more."""
    with database.session_scope() as session:
        dropped = session.scalars(
            select(Generation).where(Generation.state == "dropped", Generation.index_name.is_not(None))
        )
        for generation in dropped:
            assert generation.index_name is not None
            blobs.delete_file(generation.index_name)
            generation.index_name = None
