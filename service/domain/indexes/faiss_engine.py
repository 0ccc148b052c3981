"""What replicas and index builds read: a gallery's generations, and their rows from one revision to another."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.errors import UndefinedTable
from sqlalchemy import text
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.db import Database, driver_connection
from service.domain.gallery.generations import StoredGeneration, current_rows_query, get_stored_generation
from service.errors import GalleryError
from service.index.faiss_index import FaissIndex
from service.index.files import IndexFileError, build_index, load_index
from service.index.protocol import Metric
from service.index.recall import Sample
from service.index.replica import (
    Changes,
    GalleryState,
    GenerationGone,
    GenerationState,
    Ids,
    ServedGeneration,
    difference,
)
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, Generation, ModelVersion
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, VectorFormat

events = logs.Events(__name__)

_LONGEST_COPYING_SECONDS = 24 * 3600.0

_STATES = """
SELECT g.id, g.revision, g.active_generation_id, n.id, v.name, n.state, n.index_sha256
FROM galleries g JOIN generations n ON n.gallery_id = g.id JOIN model_versions v ON v.id = n.model_version_id
WHERE n.state <> 'dropped' AND (n.state = 'complete' OR n.index_name IS NOT NULL)
  AND (CAST(:only AS bigint) IS NULL OR g.id = :only)
ORDER BY g.id, n.id
"""


class GenerationRows:
    """The rows, as `service.index.replica.GenerationSource`."""

    def __init__(self, database: Database, blobs: BlobStore, encoders: Encoders, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._encoders = encoders
        self._settings = settings
        self._cache = settings.data / "index_cache"

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return every gallery's state, or one's."""
        with self._database.session_scope() as session:
            rows = session.execute(text(_STATES), {"only": only}).all()
        found: dict[int, GalleryState] = {}
        for gallery_id, revision, active_id, generation_id, version_name, state, sha256 in rows:
            generation = GenerationState(generation_id, version_name, state == "building", sha256)
            before = found[gallery_id].generations if gallery_id in found else ()
            found[gallery_id] = GalleryState(gallery_id, revision, active_id, (*before, generation))
        return list(found.values())

    def open(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        """Load a generation: its index file if it has one that is whole, else its rows."""
        return self.open_file(gallery_id, generation_id) or self._open_rows(gallery_id, generation_id)

    def open_file(self, gallery_id: int, generation_id: int) -> ServedGeneration | None:
        """Load a generation from its index file; None if it has none that is whole: a file is only a cache.

        No transaction is open while the file is read. One that a newer file replaced meanwhile may be gone: then that
        one is loaded.
        """
        tried: str | None = None
        while True:
            with self._database.session_scope() as session:
                metric: Metric = session.get_one(Gallery, gallery_id).metric  # type: ignore[assignment]  # checked
                generation = session.get_one(Generation, generation_id)
                stored = get_stored_generation(session, gallery_id, generation_id)
            name, sha256, revision = generation.index_name, generation.index_sha256, generation.index_revision
            if name is None or sha256 is None or revision is None or sha256 == tried:
                return None
            path = None
            try:
                path = self._blobs.fetch_file(name, self._cache)
                dim = stored.vector_format.embedding_dim
                index = load_index(path, metric, dim, sha256, self._settings.device)
            except (IndexFileError, FileNotFoundError) as error:
                events.warning("replica.index_file_unusable", generation_id=generation_id, error=str(error))
                if path is not None and path.is_relative_to(self._cache):
                    path.unlink(missing_ok=True)  # a damaged copy, perhaps, of a whole file
                tried = sha256
                continue
            self._remove_copies()
            return self._settled(ServedGeneration(gallery_id, generation_id, stored.version, index, revision, sha256))

    def _remove_copies(self) -> None:
        """Remove this machine's copies of a remote store's files that no generation has any more, and what is left of
        copying that died. One that is mapped stays so."""
        found = [path for path in self._cache.glob("*/*") if path.suffix != ".part" or _is_old(path)]
        with self._database.session_scope() as session:
            named = set(session.scalars(text("SELECT index_name FROM generations WHERE state <> 'dropped'")))
        for path in found:
            if str(path.relative_to(self._cache)) not in named:
                path.unlink(missing_ok=True)

    def _open_rows(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        with self._database.session_scope(snapshot=True) as session:
            gallery = session.get_one(Gallery, gallery_id)
            metric: Metric = gallery.metric  # type: ignore[assignment]  # the table's check allows only these
            generation = session.get_one(Generation, generation_id)
            stored = get_stored_generation(session, gallery_id, generation_id)
            vectors = (
                (rows.item_id, rows.embedding.astype(np.float32))
                for rows in read_current_rows(session, stored, self._settings.rows_per_chunk)
            )
            built = build_index(metric, stored.vector_format.embedding_dim, vectors, "flat")
        index = FaissIndex(metric, stored.vector_format.embedding_dim, built, self._settings.device)
        served = ServedGeneration(gallery_id, generation_id, stored.version, index, gallery.revision)
        served.index_sha256 = generation.index_sha256
        return self._settled(served)

    def _settled(self, served: ServedGeneration) -> ServedGeneration:
        """Leave out of a loaded index what is not live, note what it has not got, and load the encoder.

        What it has not got are rows that became current without a new revision (transformed late), and items that have
        no current row yet.
        """
        with self._database.session_scope() as session:
            live = _live_ids(session, served.gallery_id)
        served.pending = difference(live, served.index.ids())
        served.index.remove(difference(served.index.ids(), live))
        self._warm(served.version)
        events.info(
            "replica.opened",
            gallery_id=served.gallery_id,
            generation_id=served.generation_id,
            rows=len(served.index),
        )
        return served

    def changes(self, served: ServedGeneration, to_revision: int) -> Changes:
        """Return what changed in (served.revision, to_revision], and the pending rows that are current by now."""
        with self._database.session_scope(snapshot=True) as session:
            stored = get_stored_generation(session, served.gallery_id, served.generation_id)
            after = {"gallery_id": served.gallery_id, "after": served.revision}
            touched = session.execute(
                text("SELECT id, deleted_at IS NULL FROM items WHERE gallery_id = :gallery_id AND revision > :after"),
                after,
            ).all()
            touched_ids = np.array([id_ for id_, _ in touched], np.int64)
            live_ids = np.array([id_ for id_, live in touched if live], np.int64)
            wanted = np.sort(np.concatenate([live_ids, difference(served.pending, touched_ids)]))
            added, vectors = self._vectors(session, stored, wanted)
            return Changes(touched_ids, added, vectors, pending=difference(wanted, added))

    def _vectors(self, session: Session, stored: StoredGeneration, wanted: Ids) -> tuple[Ids, NDArray[np.float32]]:
        if not len(wanted):
            return wanted, np.empty((0, stored.vector_format.embedding_dim), np.float32)
        chunks = list(read_current_rows(session, stored, self._settings.rows_per_chunk, wanted))
        if not chunks:
            return np.empty(0, np.int64), np.empty((0, stored.vector_format.embedding_dim), np.float32)
        ids = np.concatenate([rows.item_id for rows in chunks])
        return ids, np.concatenate([rows.embedding for rows in chunks]).astype(np.float32)

    def _warm(self, version: ModelVersion) -> None:
        """Load the encoder now, so that no query waits for it; one that cannot be loaded fails its own queries."""
        try:
            self._encoders.get(version)
        except GalleryError as error:
            events.warning("replica.encoder_unusable", model_version=version.name, error=error.message)


def read_current_rows(
    session: Session, stored: StoredGeneration, rows_per_chunk: int, ids: Ids | None = None
) -> Iterator[EmbeddingRows]:
    """Stream a generation's current rows (embeddings only), all of them or those among `ids`, by item id.

    Raises `GenerationGone`.
    """
    where = "true" if ids is None else "i.id = ANY(%s)"
    query = current_rows_query(stored, side_information=False, where=where)
    parameters = () if ids is None else (ids.tolist(),)
    with _gone_if_dropped(stored):
        yield from read_rows(driver_connection(session), query, parameters, _embeddings_only(stored), rows_per_chunk)


def read_next_rows(
    session: Session, stored: StoredGeneration, after_item_id: int, up_to_revision: int, count: int
) -> EmbeddingRows | None:
    """Return the first `count` current rows (embeddings only) after an item id, of those no newer than a revision; None
    when there are no more. Raises `GenerationGone`."""
    where = "e.item_id > %s AND i.id > %s AND e.revision <= %s"  # i.id: PostgreSQL does not conclude it
    query = current_rows_query(stored, side_information=False, where=where) + sql.SQL(" LIMIT {}").format(count)
    parameters = (after_item_id, after_item_id, up_to_revision)
    with _gone_if_dropped(stored):
        chunks = list(read_rows(driver_connection(session), query, parameters, _embeddings_only(stored)))
    return EmbeddingRows.concatenate(chunks) if chunks else None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LONGEST_COPYING_SECONDS
    except FileNotFoundError:  # another process has just given it its name
        return False


@contextmanager
def _gone_if_dropped(stored: StoredGeneration) -> Iterator[None]:
    """Say of a table that was dropped since its generation was looked up what it means."""
    try:
        yield
    except UndefinedTable as error:
        raise GenerationGone(f"Generation {stored.id} was dropped.") from error


def _embeddings_only(stored: StoredGeneration) -> VectorFormat:
    return VectorFormat(stored.vector_format.embedding_dim, None, stored.vector_format.dtype)


def stream_rows(
    database: Database, stored: StoredGeneration, up_to_revision: int, rows_at_once: int
) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
    """Give current rows of the revision or before, by item id: (n,) ids and (n, D) embeddings at a time, each from a
    short transaction of its own."""
    last = 0
    while True:
        with database.session_scope() as session:
            rows = read_next_rows(session, stored, last, up_to_revision, rows_at_once)
        if rows is None:
            return
        yield rows.item_id, rows.embedding.astype(np.float32)
        last = int(rows.item_id[-1])


def sample_rows(session: Session, stored: StoredGeneration, count: int, rows_at_once: int) -> Sample:
    """Return up to `count` of the generation's own rows, drawn at random from all: ids come in the order of arrival,
    and the first ones may be of one kind."""
    drawn = session.scalars(
        text(f"SELECT item_id FROM {stored.table} ORDER BY random() LIMIT :count"), {"count": count}
    ).all()
    wanted = np.sort(np.array(drawn, np.int64))
    ids = np.empty(len(wanted), np.int64)
    vectors = np.empty((len(wanted), stored.vector_format.embedding_dim), np.float32)
    filled = 0
    for start in range(0, len(wanted), rows_at_once):
        part = wanted[start : start + rows_at_once]
        for rows in read_current_rows(session, stored, rows_at_once, part):
            end = filled + len(rows.item_id)
            ids[filled:end], vectors[filled:end] = rows.item_id, rows.embedding
            filled = end
    return Sample(ids[:filled], vectors[:filled])


def _live_ids(session: Session, gallery_id: int) -> Ids:
    """Return every live item's id, by COPY: there may be many millions."""
    query = sql.SQL("COPY (SELECT id FROM items WHERE gallery_id = {} AND deleted_at IS NULL) TO STDOUT").format(
        sql.Literal(gallery_id)
    )
    with driver_connection(session).cursor() as cursor, cursor.copy(query) as copy:
        data = b"".join(bytes(block) for block in copy)
    return np.fromstring(data, dtype=np.int64, sep="\n") if data else np.empty(0, np.int64)
