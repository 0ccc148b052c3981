"""Generations as collections in a Milvus server: for galleries past one machine's memory.

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.domain.gallery.generations import get_stored_generation, missing_between
from service.domain.indexes.faiss_engine import GenerationRows, stream_rows
from service.domain.indexes.query_samples import draw_recall_sample
from service.errors import Unavailable
from service.index.protocol import IndexAway, Metric
from service.index.recall import find_others, measure_recall
from service.index.replica import Changes, GalleryState, Ids, ServedGeneration, difference
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, Generation

if TYPE_CHECKING:  # it imports pymilvus, which is only there where Milvus is used
    from service.index.milvus import Collections, MilvusIndex

events = logs.Events(__name__)

_COLLECTION_LOCK = 724_065  # the space of advisory locks; the id is the generation's
_ALIAS_LOCK = 724_066  # the id is the gallery's
_LOCK_WAIT_SECONDS = 30.0
_FOLLOWING_AT_ONCE = 8  # each takes two of the process's connections
_COLLECTION = re.compile(r"gallery_\d+_generation_(\d+)")
_Progress = Callable[[int, int], None]


class CollectionBusy(Unavailable):
    """Another process fills the collection, or follows it for very long."""


def connect_collections(settings: Settings) -> "Collections | None":
    """Return the Milvus server that `index_url` names; None where indexes are FAISS files."""
    if settings.index_url is None:
        return None
    try:
        from service.index.milvus import Collections
    except ImportError as error:
        raise RuntimeError("GALLERY_INDEX_URL needs pymilvus: pip install 'gallery-upgrade[milvus]'") from error
    return Collections(settings.index_url)


def collection_name(gallery_id: int, generation_id: int) -> str:
    return f"gallery_{gallery_id}_generation_{generation_id}"


def alias_name(gallery_id: int) -> str:
    return f"gallery_{gallery_id}"


def fill_collection(
    database: Database,
    collections: "Collections",
    settings: Settings,
    gallery_id: int,
    generation_id: int,
    progress: _Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Fill the generation's collection from its rows; return what was recorded about it.

    One that is named and there is left as it is. Raises `CollectionBusy`, and `GenerationGone`.
    """
    with _locked(database, _COLLECTION_LOCK, generation_id):
        recorded = _recorded(database, collections, gallery_id, generation_id)
        if recorded is not None:
            return recorded
        return _fill(database, collections, settings, gallery_id, generation_id, progress)


def remove_collections(database: Database, collections: "Collections | None", wait_seconds: float) -> None:
    """Drop the collections of generations that are gone; without Milvus, do nothing.

    Raises `CollectionBusy` (503) when one is still being filled after `wait_seconds`; the next call tries again.
    """
    if collections is None:
        return
    found = {name: int(match[1]) for name in collections.names() if (match := _COLLECTION.fullmatch(name))}
    if not found:
        return
    with database.session_scope() as session:
        stored = set(session.scalars(text("SELECT id FROM generations WHERE state <> 'dropped'")))
    for name, generation_id in found.items():
        if generation_id not in stored:
            with _locked(database, _COLLECTION_LOCK, generation_id, wait_seconds):
                collections.drop(name)
            events.info("index.collection_removed", name=name)


class CollectionRows(GenerationRows):
    """A `service.index.replica.GenerationSource` whose indexes are collections."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        encoders: Encoders,
        settings: Settings,
        collections: "Collections",
    ) -> None:
        super().__init__(database, blobs, encoders, settings)
        self._collections = collections
        self._following = threading.BoundedSemaphore(_FOLLOWING_AT_ONCE)
        self._aliased: dict[int, int] = {}

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return every gallery's state, or one's, and see to their aliases."""
        states = super().galleries(only)
        for state in states:
            if self._aliased.get(state.id) != state.active_generation_id:
                self._point_alias(state.id)
        return states

    def open(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        """Open a generation's collection; one that is not there is filled first."""
        fill_collection(self._database, self._collections, self._settings, gallery_id, generation_id)
        with self._database.session_scope() as session:
            stored = get_stored_generation(session, gallery_id, generation_id)
            metric: Metric = session.get_one(Gallery, gallery_id).metric  # type: ignore[assignment]  # checked
            generation = session.get_one(Generation, generation_id)
        kind = (generation.index_parameters or {}).get("kind", "hnsw")
        name = collection_name(gallery_id, generation_id)
        index = self._collections.open(name, metric, stored.vector_format.embedding_dim, kind)
        self._point_alias(gallery_id)
        self._warm(stored.version)
        events.info("replica.opened", gallery_id=gallery_id, generation_id=generation_id, collection=True)
        return ServedGeneration(gallery_id, generation_id, stored.version, index, generation.index_revision or 0)

    def open_file(self, gallery_id: int, generation_id: int) -> ServedGeneration | None:
        """A file that was built before the galleries moved to Milvus is not served."""
        return None

    def changes(self, served: ServedGeneration, to_revision: int) -> Changes:
        """Bring the collection to the gallery's revision, unless another process has: nothing is left to apply here.

        Returns the items without a current row as `pending`, while there may come one.
        """
        with self._following, _locked(self._database, _COLLECTION_LOCK, served.generation_id):
            if not self._collections.has(collection_name(served.gallery_id, served.generation_id)):  # Milvus lost it
                _fill(self._database, self._collections, self._settings, served.gallery_id, served.generation_id)
            with self._database.session_scope() as session:
                reached = _reached(session, served.gallery_id, served.generation_id)
            missing = _Missing()
            for chunk in self._chunks(served, reached):
                _apply(served, chunk)
                missing.add(chunk)
            followed = reached.gallery_revision
            if not reached.is_complete and missing.first_revision is not None:
                followed = min(followed, missing.first_revision - 1)
            if followed > reached.index_revision:
                with self._database.session_scope() as session:
                    session.execute(
                        update(Generation).where(Generation.id == served.generation_id).values(index_revision=followed)
                    )
        dim = served.version.embedding_dim
        pending = np.empty(0, np.int64) if reached.is_complete else np.array(missing.ids, np.int64)
        return Changes(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, dim), np.float32), pending)

    def _chunks(self, served: ServedGeneration, reached: "_Reached") -> Iterator["_Chunk"]:
        """Read what the collection may lack: this process's pending items, then changes by revision.

        What this process has applied itself is not read again where an item without a row holds the followed revision.
        """
        size = self._settings.batch_items
        for start in range(0, len(served.pending), size):
            with self._database.session_scope() as session:
                wanted = served.pending[start : start + size].tolist()
                chunk = self._chunk(session, served, "id = ANY(:wanted)", {"wanted": wanted})
            yield chunk
        after = max(served.revision, reached.index_revision)
        while after < reached.gallery_revision:
            with self._database.session_scope() as session:
                chunk = self._chunk(
                    session, served, "revision > :after ORDER BY revision LIMIT :size", {"after": after, "size": size}
                )
            if not chunk.items:
                return
            after = max(chunk.items.values())
            yield chunk

    def _chunk(self, session: Session, served: ServedGeneration, where: str, values: dict[str, Any]) -> "_Chunk":
        stored = get_stored_generation(session, served.gallery_id, served.generation_id)
        query = f"SELECT id, revision, deleted_at IS NULL FROM items WHERE gallery_id = :gallery_id AND {where}"
        rows = session.execute(text(query), {"gallery_id": served.gallery_id, **values}).all()
        live = np.array([id_ for id_, _, is_live in rows if is_live], np.int64)
        added, vectors = self._vectors(session, stored, live)
        return _Chunk({id_: revision for id_, revision, _ in rows}, live, added, vectors)

    def _point_alias(self, gallery_id: int) -> None:
        """Let the gallery's alias stand for the active generation's collection, if that is filled.

        What is active is read under a lock, so that a process which is late does not turn the alias back. A failure is
        tried again at the next poll: nothing in this service reads the alias.
        """
        try:
            with _locked(self._database, _ALIAS_LOCK, gallery_id):
                with self._database.session_scope() as session:
                    generation_id, index_name = session.execute(
                        text(
                            "SELECT n.id, n.index_name FROM galleries g"
                            " JOIN generations n ON n.id = g.active_generation_id WHERE g.id = :id"
                        ),
                        {"id": gallery_id},
                    ).one_or_none() or (None, None)
                if generation_id is None or index_name != collection_name(gallery_id, generation_id):
                    return
                self._collections.point(alias_name(gallery_id), index_name)
        except (IndexAway, LookupError, CollectionBusy) as error:
            events.warning("index.alias_failed", gallery_id=gallery_id, reason=str(error))
            return
        self._aliased[gallery_id] = generation_id
        events.info("index.alias_pointed", gallery_id=gallery_id, generation_id=generation_id)


@dataclass(frozen=True)
class _Reached:
    """Where a generation's collection and its gallery are, read in one statement."""

    gallery_revision: int
    index_revision: int
    is_complete: bool


@dataclass(frozen=True)
class _Chunk:
    """Changed items: their revisions by id, those that are live, and the current rows (N,), (N, D) among these."""

    items: dict[int, int]
    live: Ids
    added: Ids
    vectors: NDArray[np.float32]


class _Missing:
    """Live items that have no current row."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.first_revision: int | None = None

    def add(self, chunk: _Chunk) -> None:
        ids = difference(chunk.live, chunk.added).tolist()
        self.ids += ids
        revisions = [chunk.items[id_] for id_ in ids]
        known = [] if self.first_revision is None else [self.first_revision]
        self.first_revision = min(revisions + known, default=None)


def _apply(served: ServedGeneration, chunk: _Chunk) -> None:
    gone = difference(list(chunk.items), chunk.added)
    if len(gone):
        served.index.remove(gone)
    if len(chunk.added):
        served.index.add(chunk.added, chunk.vectors)


def _reached(session: Session, gallery_id: int, generation_id: int) -> _Reached:
    stored = get_stored_generation(session, gallery_id, generation_id)  # raises when it was dropped
    query = (
        "SELECT g.revision, n.index_revision, n.state = 'complete' FROM generations n"
        " JOIN galleries g ON g.id = n.gallery_id WHERE n.id = :id"
    )
    revision, index_revision, is_complete = session.execute(text(query), {"id": stored.id}).one()
    return _Reached(revision, index_revision or 0, is_complete)


def _recorded(
    database: Database, collections: "Collections", gallery_id: int, generation_id: int
) -> dict[str, Any] | None:
    """Return what the generation's row says about its collection, if that is there."""
    with database.session_scope() as session:
        get_stored_generation(session, gallery_id, generation_id)
        generation = session.get_one(Generation, generation_id)
    name = collection_name(gallery_id, generation_id)
    if generation.index_name != name or not collections.has(name):
        return None
    return generation.index_parameters or {}


def _fill(
    database: Database,
    collections: "Collections",
    settings: Settings,
    gallery_id: int,
    generation_id: int,
    progress: _Progress = lambda done, total: None,
) -> dict[str, Any]:
    started = time.monotonic()
    with database.session_scope() as session:
        reached = _reached(session, gallery_id, generation_id)
        stored = get_stored_generation(session, gallery_id, generation_id)
        gallery = session.get_one(Gallery, gallery_id)
        metric: Metric = gallery.metric  # type: ignore[assignment]  # the table's check allows only these
        total = session.scalar(text(f"SELECT count(*) FROM {stored.table}")) or 0
        first_missing = missing_between(session, gallery_id, generation_id, 0, reached.gallery_revision)[1]
        sample = draw_recall_sample(session, stored, settings)
    # Else a graph at any size: Milvus scans what is too small for one, and a collection may grow.
    kind: Literal["flat", "hnsw"] = "flat" if gallery.index == "flat" else "hnsw"
    name = collection_name(gallery_id, generation_id)
    collections.drop(name)
    index = collections.create(name, metric, stored.vector_format.embedding_dim, kind)

    def rows() -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        return stream_rows(database, stored, reached.gallery_revision, settings.batch_items)

    count = _add_all(index, rows(), total, progress)
    if count:
        collections.flush(name)
    crash_point("index.streamed")
    recall = measure_recall(metric, sample, [find_others(index, sample)], rows())[0]
    crash_point("index.built")
    followed = reached.gallery_revision
    if not reached.is_complete and first_missing is not None:
        followed = min(followed, first_missing - 1)
    parameters = {
        "kind": kind,
        "engine": "milvus",
        "rows": count,
        "seconds": round(time.monotonic() - started, 3),
        **sample.describe(recall),
    }
    with database.session_scope() as session:
        session.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.state != "dropped")
            .values(index_name=name, index_sha256=None, index_revision=followed, index_parameters=parameters)
        )
    crash_point("index.named")
    return parameters


def _add_all(
    index: "MilvusIndex", rows: Iterable[tuple[Ids, NDArray[np.float32]]], total: int, progress: _Progress
) -> int:
    count = 0
    for ids, vectors in rows:
        index.add(ids, vectors)
        count += len(ids)
        progress(count, total)
    return count


@contextmanager
def _locked(database: Database, space: int, id_: int, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
    with database.advisory_lock(space, id_, wait_seconds) as held:
        if not held:
            raise CollectionBusy("Another process is at work on the index; try again shortly.")
        yield
