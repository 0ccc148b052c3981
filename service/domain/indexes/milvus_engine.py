"""Indexes as collections in a Milvus server: for galleries past one machine's memory. Imports pymilvus.

A generation is the collection `gallery_<id>_generation_<id>`, which all processes share, so its index is not loaded by
each of them: it is filled once, and brought along by whoever comes first.

Filling, under the generation's lock: 1. read the gallery's revision R; 2. drop what an earlier try left, and create the
collection; 3. stream the rows into it that are current and no newer than R (crash point `index.streamed`); 4. measure
its recall on a sample of the gallery's queries, or of its rows where few were asked (`index.built`); 5. name it and the
followed revision in the generation's row (`index.named`).
A crash before 5 leaves a collection that no row names: the next filling starts it over.

Following: `generations.index_revision` says up to which revision the collection has every change. One process at a time
holds the generation's lock, applies what came since, and moves it on. An item that has no current row yet (an upgrade's
catch-up will bring it, without a new revision) holds it below the item's revision.

The alias `gallery_<id>` stands for the active generation's collection, for those who read Milvus directly. It follows
the gallery's row within the poll interval. Queries of this service name the collection, so that they switch with the
row. A Milvus database belongs to one deployment: collections that bear such a name and are no generation's are dropped.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ARRAY, BigInteger, Select, any_, literal, select
from sqlalchemy.orm import Session

from service import logs
from service.advisory_locks import AdvisoryLock
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.domain.gallery.current_rows import first_missing_between, read_current_vectors, stream_rows
from service.domain.gallery.generations import GenerationKey, count_rows, get_stored_generation
from service.domain.generation_stage import STORED, GenerationStage
from service.domain.indexes.builds import counted, end_build, name_index
from service.domain.indexes.engine import Build, IndexEngine, IndexRecord, Report
from service.domain.indexes.index_files import remove_unneeded_files
from service.domain.indexes.query_samples import draw_recall_sample
from service.domain.indexes.sources import read_states, warm
from service.errors import Unavailable
from service.index.milvus import Collections, Kind
from service.index.protocol import Ids, IndexAway, Vectors
from service.index.recall import find_others, recall_of
from service.index.served import GalleryState, GenerationSource, ServedGeneration, apply_changes, difference
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, Generation, Item, Json

events = logs.Events(__name__)

_LOCK_WAIT_SECONDS = 30.0
_FOLLOWING_AT_ONCE = 8  # each takes two of the process's connections
_TAKEN_OUT = (
    "The items are deleted from the collection, which was told to compact: Milvus writes its segments without them, and"
    " removes those of before when its own retention ends."
)
_CHANGED = select(Item.id, Item.revision, Item.deleted_at.is_(None))
_COLLECTION = re.compile(r"gallery_\d+_generation_(\d+)")


class CollectionBusy(Unavailable):
    """Another process fills the collection, or follows it for very long."""


def collection_name(generation: GenerationKey) -> str:
    return f"gallery_{generation.gallery_id}_generation_{generation.generation_id}"


class MilvusEngine(IndexEngine):
    """Indexes as collections in the Milvus server at `url`. Raises `IndexAway` when that does not answer."""

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings, url: str) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings
        self._collections = Collections(url)

    def follow(self, encoders: Encoders) -> "MilvusSource":
        return MilvusSource(self._database, encoders, self._settings, self._collections, self)

    def remove_unneeded(self, wait_seconds: float) -> None:
        """Drop the collections of generations that are gone, and remove the index files that the galleries had before
        they moved here.

        Raises `CollectionBusy` (503) when one is still being filled after `wait_seconds`; the next call tries again.
        """
        remove_unneeded_files(self._database, self._blobs)
        found = {name: int(match[1]) for name in self._collections.names() if (match := _COLLECTION.fullmatch(name))}
        if not found:
            return

        with self._database.session_scope() as session:
            stored = set(session.scalars(select(Generation.id).where(Generation.state.in_(STORED))))

        for name, generation_id in found.items():
            if generation_id not in stored:
                with _locked(self._database, AdvisoryLock.COLLECTION, generation_id, wait_seconds):
                    self._collections.drop(name)
                events.info("index.collection_removed", name=name)

    def take_out(self, generation: GenerationKey, ids: Ids) -> str | None:
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, generation.gallery_id, generation.generation_id)
        name = collection_name(generation)
        with _locked(self._database, AdvisoryLock.COLLECTION, generation.generation_id):
            if self._collections.has(name):
                index = self._collections.open(name, stored.metric, stored.vector_format.embedding_dim, "hnsw")
                index.remove(ids)
                self._collections.compact(name)
        return _TAKEN_OUT

    def close(self) -> None:
        self._collections.close()

    def build(self, build: Build) -> Json:
        recorded = self.fill(build.generation, build.progress)
        with self._database.session_scope() as session:
            end_build(session, build, recorded)
        return recorded

    def fill(self, generation: GenerationKey, progress: Report = lambda _done, _total: None) -> Json:
        """Fill the generation's collection from its rows; return what was recorded about it.

        One that is named and there is left as it is. Raises `CollectionBusy`, and `GenerationGone`.
        """
        with _locked(self._database, AdvisoryLock.COLLECTION, generation.generation_id):
            recorded = self._recorded(generation)
            return self.refill(generation, progress) if recorded is None else recorded

    def _recorded(self, generation: GenerationKey) -> Json | None:
        """Return what the generation's row says about its collection, if that is there."""
        with self._database.session_scope() as session:
            get_stored_generation(session, generation.gallery_id, generation.generation_id)
            row = session.get_one(Generation, generation.generation_id)
        name = collection_name(generation)
        if row.index_name != name or not self._collections.has(name):
            return None
        return row.index_parameters or {}

    def refill(self, generation: GenerationKey, progress: Report = lambda _done, _total: None) -> Json:
        """Fill the collection anew, whatever is there; the generation's lock is held."""
        # 1.
        started = time.monotonic()
        with self._database.session_scope() as session:
            reached = _reached(session, generation)
            stored = get_stored_generation(session, generation.gallery_id, generation.generation_id)
            gallery = session.get_one(Gallery, generation.gallery_id)
            total = count_rows(session, stored)
            first_missing = first_missing_between(session, stored.key, 0, reached.gallery_revision)
            sample = draw_recall_sample(session, stored, self._settings)
        dim = stored.vector_format.embedding_dim
        sample = sample.with_points_between(stored.metric, np.empty((0, dim), np.float32))

        # 2. Else a graph at any size: Milvus scans what is too small for one, and a collection may grow.
        kind: Kind = "flat" if gallery.index == "flat" else "hnsw"
        name = collection_name(generation)
        self._collections.drop(name)
        index = self._collections.create(name, stored.metric, dim, kind)

        # 3.
        def rows() -> Iterator[tuple[Ids, Vectors]]:
            return stream_rows(self._database, stored, reached.gallery_revision, self._settings.batch_items)

        count = 0
        for ids, vectors in counted(rows(), total, progress):
            index.add(ids, vectors)
            count += len(ids)
        if count:
            self._collections.flush(name)
        crash_point("index.streamed")

        # 4.
        recall = recall_of(stored.metric, sample, find_others(index, sample), rows())
        crash_point("index.built")

        # 5.
        seconds = time.monotonic() - started
        recorded = IndexRecord(kind, count, seconds, recall, {"engine": "milvus"}).as_json()
        with self._database.session_scope() as session:
            name_index(session, stored.id, name, None, reached.followed_before(first_missing), recorded)
        crash_point("index.named")
        return recorded


class MilvusSource(GenerationSource):
    """Opens collections, which are filled where they lack."""

    def __init__(
        self,
        database: Database,
        encoders: Encoders,
        settings: Settings,
        collections: Collections,
        engine: MilvusEngine,
    ) -> None:
        self._database = database
        self._encoders = encoders
        self._settings = settings
        self._collections = collections
        self._engine = engine
        self._following = threading.BoundedSemaphore(_FOLLOWING_AT_ONCE)
        self._aliased: dict[int, int] = {}

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return every gallery's state, or one's, and see to their aliases."""
        states = read_states(self._database, only)
        for state in states:
            if self._aliased.get(state.id) != state.active_generation_id:
                self._point_alias(state.id)
        return states

    def open(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        """Open a generation's collection; one that is not there is filled first."""
        key = GenerationKey(gallery_id, generation_id)
        self._engine.fill(key)
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, gallery_id, generation_id)
            generation = session.get_one(Generation, generation_id)
        kind = (generation.index_parameters or {}).get("kind", "hnsw")
        index = self._collections.open(collection_name(key), stored.metric, stored.vector_format.embedding_dim, kind)
        self._point_alias(gallery_id)
        warm(self._encoders, stored.version)
        events.info("replica.opened", gallery_id=gallery_id, generation_id=generation_id, collection=True)
        return ServedGeneration(gallery_id, generation_id, stored.version, index, generation.index_revision or 0)

    def follow(self, served: ServedGeneration) -> Ids:
        """Bring the collection to the gallery's revision, unless another process has.

        Returns the items without a current row, while there may come one.
        """
        key = GenerationKey(served.gallery_id, served.generation_id)
        with self._following, _locked(self._database, AdvisoryLock.COLLECTION, served.generation_id):
            if not self._collections.has(collection_name(key)):  # Milvus lost it
                self._engine.refill(key)
            with self._database.session_scope() as session:
                reached = _reached(session, key)

            missing: dict[int, int] = {}
            for chunk in self._chunks(served, reached):
                apply_changes(served.index, np.array(list(chunk.revisions), np.int64), chunk.added, chunk.vectors)
                for id_, revision in chunk.missing.items():
                    missing.setdefault(id_, revision)

            followed = reached.followed_before(min(missing.values(), default=None))
            if followed > reached.index_revision:
                with self._database.session_scope() as session:
                    session.get_one(Generation, served.generation_id).index_revision = followed
        return np.array([] if reached.is_complete else list(missing), np.int64)

    def _chunks(self, served: ServedGeneration, reached: "_Reached") -> Iterator["_Chunk"]:
        """Read what the collection may lack: this process's pending items, then changes by revision.

        What this process has applied itself is not read again where an item without a row holds the followed revision.
        """
        size = self._settings.batch_items
        for start in range(0, len(served.pending), size):
            wanted = literal(served.pending[start : start + size].tolist(), ARRAY(BigInteger))
            yield self._chunk(served, _CHANGED.where(Item.id == any_(wanted)))

        after = max(served.revision, reached.index_revision)
        while after < reached.gallery_revision:
            chunk = self._chunk(served, _CHANGED.where(Item.revision > after).order_by(Item.revision).limit(size))
            if not chunk.revisions:
                return
            after = max(chunk.revisions.values())
            yield chunk

    def _chunk(self, served: ServedGeneration, changed: Select[int, int, bool]) -> "_Chunk":
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, served.gallery_id, served.generation_id)
            rows = session.execute(changed.where(Item.gallery_id == served.gallery_id)).all()
            live = np.array([id_ for id_, _, is_live in rows if is_live], np.int64)
            added, vectors = read_current_vectors(session, stored, self._settings.rows_per_chunk, live)
        revisions = {id_: revision for id_, revision, _ in rows}
        return _Chunk(revisions, {id_: revisions[id_] for id_ in difference(live, added).tolist()}, added, vectors)

    def _point_alias(self, gallery_id: int) -> None:
        """Let the gallery's alias stand for the active generation's collection, if that is filled.

        What is active is read under a lock, so that a process which is late does not turn the alias back. A failure is
        tried again at the next poll: nothing in this service reads the alias.
        """
        try:
            with _locked(self._database, AdvisoryLock.ALIAS, gallery_id):
                with self._database.session_scope() as session:
                    query = select(Generation).join(Gallery, Gallery.active_generation_id == Generation.id)
                    active = session.scalar(query.where(Gallery.id == gallery_id))
                if active is None or active.index_name != collection_name(GenerationKey(gallery_id, active.id)):
                    return
                self._collections.point(f"gallery_{gallery_id}", active.index_name)
        except (IndexAway, LookupError, CollectionBusy) as error:
            events.warning("index.alias_failed", gallery_id=gallery_id, reason=str(error))
            return

        self._aliased[gallery_id] = active.id
        events.info("index.alias_pointed", gallery_id=gallery_id, generation_id=active.id)


@dataclass(frozen=True)
class _Reached:
    """Where a generation's collection and its gallery are, read in one statement."""

    gallery_revision: int
    index_revision: int
    is_complete: bool

    def followed_before(self, first_missing: int | None) -> int:
        """Return up to which revision the collection has every change, once it has all that is there by now.

        `first_missing` is the lowest revision of an item without a current row: unless the generation is complete, that
        row is still to come.
        """
        if self.is_complete or first_missing is None:
            return self.gallery_revision
        return min(self.gallery_revision, first_missing - 1)


@dataclass(frozen=True)
class _Chunk:
    """Changed items: their revisions by id, those of the live ones without a current row, and the current rows (N,),
    (N, D) of the others."""

    revisions: dict[int, int]
    missing: dict[int, int]
    added: Ids
    vectors: Vectors


def _reached(session: Session, generation: GenerationKey) -> _Reached:
    stored = get_stored_generation(session, generation.gallery_id, generation.generation_id)  # raises if dropped
    query = select(Gallery.revision, Generation.index_revision, Generation.state == GenerationStage.COMPLETE).join(
        Generation, Generation.gallery_id == Gallery.id
    )
    revision, index_revision, is_complete = session.execute(query.where(Generation.id == stored.id)).one()
    return _Reached(revision, index_revision or 0, is_complete)


@contextmanager
def _locked(
    database: Database, lock: AdvisoryLock, id_: int, wait_seconds: float = _LOCK_WAIT_SECONDS
) -> Iterator[None]:
    """Hold a lock, or raise `CollectionBusy` when it is not free in time."""
    with database.advisory_lock(lock, id_, wait_seconds) as held:
        if not held:
            raise CollectionBusy("Another process is at work on the index; try again shortly.")
        yield
