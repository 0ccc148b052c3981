"""A sample of the queries that each gallery is asked under each model version: by it the width of an index is chosen,
and its recall measured.

Queries by an image or by vectors are kept, as vectors; not those by an item, which are rows of the gallery. Of all that
an API process answers between two writings it keeps a few, drawn uniformly. Each takes a random slot of a fixed number,
a free one while there are any, and replaces what was there, so that the sample is bounded, and old queries go as new
ones come, however many processes write. Losing some costs nothing, so none is tried again.
"""

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.gallery.current_rows import read_current_rows
from service.domain.gallery.generations import StoredGeneration
from service.index.protocol import Vectors
from service.index.recall import Sample
from service.settings import Settings

events = logs.Events(__name__)

_KEPT = 100  # of a gallery and version between two writings
_OF_ONE_REQUEST = 10  # so that one batch, of whatever it is, does not make a sample

# Both rows are locked before a slot is, as who deletes one of them does, and slots are taken in their order: nobody
# waits in a circle. A gallery or a version that is gone gets nothing.
_WRITE = """
INSERT INTO query_samples (gallery_id, model_version_id, slot, vector)
SELECT g.id, v.id, kept.slot, kept.vector
FROM galleries g, model_versions v,
  unnest(CAST(:slots AS bigint[]), CAST(:vectors AS bytea[])) AS kept (slot, vector)
WHERE g.id = :gallery_id AND v.id = :version_id
ORDER BY kept.slot
FOR KEY SHARE OF g, v
ON CONFLICT (gallery_id, model_version_id, slot) DO UPDATE SET vector = excluded.vector, asked_at = excluded.asked_at
RETURNING slot
"""

_TAKEN = "SELECT slot FROM query_samples WHERE gallery_id = :gallery_id AND model_version_id = :version_id"

_READ = """
SELECT vector FROM query_samples WHERE gallery_id = :gallery_id AND model_version_id = :version_id
ORDER BY random() LIMIT :limit
"""


class QuerySamples:
    """What this process adds to the samples, of `slots` queries each, with a thread of its own that writes; with no
    slots, no query is kept."""

    def __init__(self, database: Database, slots: int, write_every_seconds: float = 10.0) -> None:
        self._database = database
        self._slots = slots
        self._write_every_seconds = write_every_seconds
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int], _Reservoir] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_until_stopped, name="query-samples", daemon=True)

    def start(self) -> None:
        """Remove what is beyond the slots; then write what is noted every few seconds. Both in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Write the rest, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def note(self, gallery_id: int, version_id: int, vectors: Vectors) -> None:
        """Keep some of one request's (Q, D) float32 queries, of a model version, until they are written."""
        if self._slots == 0:
            return
        if len(vectors) > _OF_ONE_REQUEST:
            vectors = vectors[random.sample(range(len(vectors)), _OF_ONE_REQUEST)]
        with self._lock:
            self._kept.setdefault((gallery_id, version_id), _Reservoir()).offer(vectors)

    def write(self) -> None:
        """Write what was noted since the last time. What cannot be written is dropped, with a line in the log."""
        with self._lock:
            kept, self._kept = self._kept, {}
        for (gallery_id, version_id), reservoir in kept.items():
            with self._transaction(gallery_id=gallery_id, model_version_id=version_id) as session:
                self._take_slots(session, gallery_id, version_id, reservoir.vectors)

    def _take_slots(self, session: Session, gallery_id: int, version_id: int, vectors: list[bytes]) -> None:
        count = min(len(vectors), self._slots)
        sample = {"gallery_id": gallery_id, "version_id": version_id}
        taken = set(session.scalars(text(_TAKEN), sample))
        slots = random.sample(range(self._slots), self._slots)
        slots.sort(key=taken.__contains__)
        values = {"slots": slots[:count], "vectors": random.sample(vectors, count)}
        if not session.execute(text(_WRITE), sample | values).all():
            events.info("query_sample.unwanted", gallery_id=gallery_id, model_version_id=version_id)

    def _write_until_stopped(self) -> None:
        self._remove_beyond()
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(self._write_every_seconds)
            if self._slots == 0:
                self._remove_beyond()  # what a process with other settings has written since
            self.write()

    def _remove_beyond(self) -> None:
        with self._transaction() as session:
            session.execute(text("DELETE FROM query_samples WHERE slot >= :slots"), {"slots": self._slots})

    @contextmanager
    def _transaction(self, **fields: object) -> Iterator[Session]:
        """One transaction that may fail, as in an outage of the database."""
        try:
            with self._database.session_scope() as session:
                yield session
        except SQLAlchemyError as error:
            reason = error.orig if isinstance(error, DBAPIError) else error  # a DBAPIError's own text has the vectors
            events.warning("query_sample.not_written", reason=f"{type(error).__name__}: {reason}", **fields)


def remove_old_samples(session: Session, days: float) -> None:
    """Remove the queries that were asked longer ago than so many days. Rows that somebody writes just now stay."""
    old = "SELECT ctid FROM query_samples WHERE asked_at < now() - make_interval(secs => :days * 86400)"
    session.execute(
        text(f"DELETE FROM query_samples WHERE ctid = ANY(ARRAY({old} FOR UPDATE SKIP LOCKED))"), {"days": days}
    )


class _Reservoir:
    """The vectors that are kept of those that were offered: a uniform sample, as bytes of float32, little-endian."""

    def __init__(self) -> None:
        self.vectors: list[bytes] = []
        self._offered = 0

    def offer(self, vectors: Vectors) -> None:
        for vector in vectors:
            self._offered += 1
            if len(self.vectors) < _KEPT:
                self.vectors.append(_bytes(vector))
            elif (place := int(self._offered * random.random())) < _KEPT:  # noqa: S311 - a sample, no secret
                self.vectors[place] = _bytes(vector)


def _bytes(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()


def read_query_sample(session: Session, gallery_id: int, version_id: int, dim: int, limit: int) -> Vectors:
    """Return (N, dim) float32: at most `limit` of the kept queries, drawn at random."""
    values = {"gallery_id": gallery_id, "version_id": version_id, "limit": limit}
    kept = session.scalars(text(_READ), values).all()
    return np.frombuffer(b"".join(kept), "<f4").reshape(-1, dim).astype(np.float32)


def fewest_queries(settings: Settings) -> int:
    """Return how many kept queries make a sample by which a width is chosen."""
    return max(1, math.ceil(full_sample(settings) / 2))


def full_sample(settings: Settings) -> int:
    """Return by how many kept queries a width is chosen at most."""
    return min(settings.recall_sample_items, settings.query_sample_items)


def draw_recall_sample(session: Session, stored: StoredGeneration, settings: Settings) -> Sample:
    """Return what a generation's new index is tried with: kept queries of its model version, or rows of its own where
    too few were kept."""
    dim, count = stored.vector_format.embedding_dim, settings.recall_sample_items
    queries = read_query_sample(session, stored.gallery_id, stored.version.id, dim, count)
    if len(queries) >= fewest_queries(settings):
        return Sample.of_queries(queries)
    return sample_rows(session, stored, count, settings.batch_items)


def sample_rows(session: Session, stored: StoredGeneration, count: int, rows_at_once: int) -> Sample:
    """Return up to `count` of the generation's own rows, drawn at random from all: ids are in the order of arrival, so
    that the first ones may all be alike."""
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
