"""Indexes as FAISS files: a worker builds and publishes one, each API process loads it and follows the rows.

The steps of a build:
1. read the gallery's revision R, and the rows that lists are learnt from; then stream the rows that are current and no
   newer than R into the index, in many short transactions: whoever loads the file applies all changes since R (crash
   point `index.streamed`);
2. choose how wide it is searched by its recall against exact search, on a sample of the queries that the gallery is
   asked under the generation's model version, or of its rows where few were asked (`index.built`);
3. publish the file under a name of its own, with the generation's and the job's id: temporary name, fsync, rename,
   fsync of the folder (the steps of `service.index.files`, then `index.published`);
4. name it, its SHA-256 and R in the generation's row, and end the job (`index.named`);
5. remove the file that it replaces.
Until 4 the generation keeps the file that it had. A crash after 1 or 2 leaves no file; within 3, a temporary one; after
3, one that no row names; after 4, the one that was replaced. `service.domain.indexes.index_files` removes each of them,
once the next build of the generation has ended the job that seems to run.

Where only the width is to be chosen anew, the file that is there is opened instead of 1, and named again without 3 when
the width stays.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.domain.gallery.current_rows import live_ids, read_current_rows, read_current_vectors, stream_rows
from service.domain.gallery.generations import GenerationKey, count_rows, get_stored_generation
from service.domain.indexes.builds import counted, end_build, name_index
from service.domain.indexes.due import DueRebuild, Rebuilds
from service.domain.indexes.engine import Build, IndexEngine, IndexRecord, Report, SmoothingNotPossible
from service.domain.indexes.index_files import index_file, named_files, remove_unneeded_files
from service.domain.indexes.query_samples import draw_recall_sample, sample_rows
from service.domain.indexes.sources import read_states, warm
from service.domain.jobs import BuildProgress, record_progress
from service.index.faiss_index import FaissIndex
from service.index.files import IndexFileError, build_index, load_index, read_index, save_index
from service.index.kinds import BuiltIndex, training_rows
from service.index.protocol import Ids, IndexKind, IndexOption, Vectors
from service.index.recall import Recall, choose_width
from service.index.served import GalleryState, GenerationSource, ServedGeneration, apply_changes, difference
from service.index.smoothing import Neighbourhoods
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, Generation, Item, Json

events = logs.Events(__name__)

_CACHE = "index_cache"
_LONGEST_COPYING_SECONDS = 24 * 3600.0
_Chunk = tuple[Ids, Vectors]


class FaissEngine(IndexEngine):
    """Indexes as FAISS files in the blob store."""

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings
        self.rebuilds = Rebuilds()
        self._neighbourhoods: tuple[str, Neighbourhoods] | None = None  # of the file with this digest, until a build

    def follow(self, encoders: Encoders) -> "FaissSource":
        return FaissSource(self._database, self._blobs, encoders, self._settings)

    def find_due(self, session: Session, generation_id: int | None = None) -> DueRebuild | None:
        rebuilds = self.rebuilds if generation_id is None else Rebuilds()  # one that is asked for is looked at anew
        return rebuilds.find_due(session, self._settings, generation_id)

    def remove_unneeded(self, wait_seconds: float) -> None:  # noqa: ARG002 - no file is waited for
        remove_unneeded_files(self._database, self._blobs)

    @property
    def can_smooth(self) -> bool:
        return True

    def neighbourhoods(self, generation: GenerationKey) -> Neighbourhoods:
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, generation.gallery_id, generation.generation_id)
            row = session.get_one(Generation, generation.generation_id)
        name, sha256 = row.index_name, row.index_sha256
        if name is None or sha256 is None:
            raise SmoothingNotPossible("It has no index file.")
        if self._neighbourhoods is None or self._neighbourhoods[0] != sha256:
            dim = stored.vector_format.embedding_dim
            try:
                path = self._blobs.fetch_file(name, self._settings.data / _CACHE)
                built = read_index(path, stored.metric, dim, sha256)
            except (IndexFileError, FileNotFoundError) as error:
                raise SmoothingNotPossible(f"Its index file cannot be read: {error}") from error
            self._neighbourhoods = sha256, Neighbourhoods(stored.metric, dim, built)
        return self._neighbourhoods[1]

    def build(self, build: Build) -> Json:
        self._neighbourhoods = None
        built = self._with_other_width(build) if build.only_width else None
        if built is None:
            built = self._from_rows(build)
        crash_point("index.built")
        recorded = self._publish(build, built)

        # 5.
        remove_unneeded_files(self._database, self._blobs)
        events.info("index.published", generation_id=build.generation.generation_id, **recorded)
        return recorded

    def _from_rows(self, build: Build) -> "_Built":
        """Do steps 1 and 2."""
        # 1.
        with self._database.session_scope() as session:
            gallery = session.get_one(Gallery, build.generation.gallery_id)
            stored = get_stored_generation(session, gallery.id, build.generation.generation_id)
            count = count_rows(session, stored)
            sample = draw_recall_sample(session, stored, self._settings)

        dim = stored.vector_format.embedding_dim
        kind = _kind(gallery.index, count, self._settings)
        with self._database.session_scope() as session:
            wanted = training_rows(kind, dim, count)
            training = sample_rows(session, stored, wanted, self._settings.batch_items).vectors

        def rows() -> Iterator[_Chunk]:
            return stream_rows(self._database, stored, gallery.revision, self._settings.batch_items)

        built = build_index(stored.metric, dim, counted(rows(), count, build.progress), kind, training)
        crash_point("index.streamed")

        # 2.
        recall = choose_width(built, stored.metric, sample, _watched(rows(), count, build.progress))
        return _Built(built, gallery.revision, recall)

    def _with_other_width(self, build: Build) -> "_Built | None":
        """Do steps 1 and 2 with the file that is there: only its width is chosen anew. None if it cannot be read.

        Rows that changed since are compared as the file has them.
        """
        # 1.
        generation_id = build.generation.generation_id
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, build.generation.gallery_id, generation_id)
            row = session.get_one(Generation, generation_id)
            sample = draw_recall_sample(session, stored, self._settings)
        name, sha256, revision, recorded = row.index_name, row.index_sha256, row.index_revision, row.index_parameters
        if name is None or sha256 is None or revision is None or recorded is None:
            return None

        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self._blobs.fetch_file(name, Path(folder))
                built = read_index(path, stored.metric, stored.vector_format.embedding_dim, sha256)
            except (IndexFileError, FileNotFoundError) as error:
                events.warning("index.unusable", generation_id=generation_id, error=str(error))
                return None

        # 2.
        before = built.parameters
        size = self._settings.batch_items
        rows = built.all_rows(stream_rows(self._database, stored, revision, size), size)
        recall = choose_width(built, stored.metric, sample, _watched(rows, len(built), build.progress))
        built = replace(built, seconds=recorded["seconds"])
        published = (name, sha256) if built.parameters == before else None
        return _Built(built, revision, recall, published)

    def _publish(self, build: Build, built: "_Built") -> Json:
        """Do steps 3 and 4; return what was recorded."""
        generation_id = build.generation.generation_id

        # 3.
        if built.published is None:
            name = index_file(generation_id, build.job_id)
            digests: list[str] = []
            self._blobs.publish(name, lambda path: digests.append(save_index(built.index, path)))
            sha256 = digests[0]
        else:
            name, sha256 = built.published
        crash_point("index.published")

        # 4.
        index, count = built.index, len(built.index)
        recorded = IndexRecord(index.rows.kind, count, index.seconds, built.recall, index.parameters).as_json()
        with self._database.session_scope() as session:
            record_progress(session, build.job_id, BuildProgress(count, count))
            end_build(session, build, recorded)
            name_index(session, generation_id, name, sha256, built.revision, recorded)
        crash_point("index.named")
        return recorded


@dataclass(frozen=True)
class _Built:
    index: BuiltIndex
    revision: int
    recall: Recall
    published: tuple[str, str] | None = None  # the name and the digest of a file that is the same


def _kind(option: IndexOption, rows: int, settings: Settings) -> IndexKind:
    """Return the kind that a gallery's `index` option asks for."""
    if option == "auto":
        return "flat" if rows < settings.flat_below_rows else "hnsw"
    return option


def _watched(rows: Iterable[_Chunk], total: int, progress: Report) -> Iterator[_Chunk]:
    """Give the rows again when all are in the index; `progress` stops a build that is not wanted any more."""
    for chunk in rows:
        yield chunk
        progress(total, total)


class FaissSource(GenerationSource):
    """Loads index files, and rows where there is none."""

    def __init__(self, database: Database, blobs: BlobStore, encoders: Encoders, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._encoders = encoders
        self._settings = settings
        self._cache = settings.data / _CACHE

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return every gallery's state, or one's."""
        return read_states(self._database, only)

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
                generation = session.get_one(Generation, generation_id)
                stored = get_stored_generation(session, gallery_id, generation_id)
            name, sha256, revision = generation.index_name, generation.index_sha256, generation.index_revision
            if name is None or sha256 is None or revision is None or sha256 == tried:
                return None

            path = None
            try:
                path = self._blobs.fetch_file(name, self._cache)
                dim = stored.vector_format.embedding_dim
                index = load_index(path, stored.metric, dim, sha256, self._settings.device)
            except (IndexFileError, FileNotFoundError) as error:
                events.warning("replica.index_file_unusable", generation_id=generation_id, error=str(error))
                if path is not None and path.is_relative_to(self._cache):
                    path.unlink(missing_ok=True)  # a damaged copy, perhaps, of a whole file
                tried = sha256
                continue

            self._remove_copies()
            return self._settled(ServedGeneration(gallery_id, generation_id, stored.version, index, revision, sha256))

    def _remove_copies(self) -> None:
        """Remove this machine's copies of a remote store's files that no generation names any more, and what is left of
        copying that died. A process that has one mapped keeps it."""
        found = [path for path in self._cache.glob("*/*") if path.suffix != ".part" or _is_old(path)]
        with self._database.session_scope() as session:
            named = named_files(session)
        for path in found:
            if str(path.relative_to(self._cache)) not in named:
                path.unlink(missing_ok=True)

    def _open_rows(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        with self._database.session_scope(snapshot=True) as session:
            gallery = session.get_one(Gallery, gallery_id)
            generation = session.get_one(Generation, generation_id)
            stored = get_stored_generation(session, gallery_id, generation_id)
            dim = stored.vector_format.embedding_dim
            vectors = (
                (rows.item_id, rows.embedding.astype(np.float32))
                for rows in read_current_rows(session, stored, self._settings.rows_per_chunk)
            )
            built = build_index(stored.metric, dim, vectors, "flat")

        index = FaissIndex(stored.metric, dim, built, self._settings.device)
        served = ServedGeneration(gallery_id, generation_id, stored.version, index, gallery.revision)
        served.index_sha256 = generation.index_sha256
        return self._settled(served)

    def _settled(self, served: ServedGeneration) -> ServedGeneration:
        """Leave out of a loaded index what is not live, note what it lacks, and load the encoder.

        It lacks rows that became current without a new revision (transformed late), and items that have no current row
        yet.
        """
        with self._database.session_scope() as session:
            live = live_ids(session, served.gallery_id)
        served.pending = difference(live, served.index.ids())
        served.index.remove(difference(served.index.ids(), live))
        warm(self._encoders, served.version)
        events.info(
            "replica.opened",
            gallery_id=served.gallery_id,
            generation_id=served.generation_id,
            rows=len(served.index),
        )
        return served

    def follow(self, served: ServedGeneration) -> Ids:
        """Apply what changed since the served revision, and pending rows that are current by now."""
        changed = select(Item.id, Item.deleted_at.is_(None)).where(
            Item.gallery_id == served.gallery_id, Item.revision > served.revision
        )
        with self._database.session_scope(snapshot=True) as session:
            stored = get_stored_generation(session, served.gallery_id, served.generation_id)
            touched = session.execute(changed).all()
            touched_ids = np.array([id_ for id_, _ in touched], np.int64)
            live = np.array([id_ for id_, is_live in touched if is_live], np.int64)
            wanted = np.sort(np.concatenate([live, difference(served.pending, touched_ids)]))
            added, vectors = read_current_vectors(session, stored, self._settings.rows_per_chunk, wanted)
        apply_changes(served.index, touched_ids, added, vectors)
        return difference(wanted, added)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LONGEST_COPYING_SECONDS
    except FileNotFoundError:  # another process has just given it its name
        return False
