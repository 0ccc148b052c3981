"""Image queries that are asked of another generation too, off their path.

While an upgrade is open, its candidate is: what its cutover will change for those who ask. Of a random share of a
process's queries, and while the candidate is loaded, a thread of its own encodes the image by φ_new and ψ_old, asks
both generations for the ten nearest, whatever the query's filter, and keeps vectors and ids. The image is let go as
soon as it is encoded. No query waits for any of this: where too many wait for the thread, more are dropped, and so is
one that fails. What is kept is shown in reports, and is no gate's.

While an upgrade is baked, the same thread asks the previous generation (`service.domain.search.bakes`).
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.generation_stage import GenerationStage
from service.domain.registry.versions import encoder_of
from service.index.protocol import Ids, Vectors
from service.index.served import ServedGeneration
from service.networks.encoders import Encoders, VersionWithoutNetworks, in_one_thread
from service.tables import Upgrade

events = logs.Events(__name__)

_K = 10
_MOST_WAITING = 8  # each with its file in memory

# Reads an image, and returns what is still to do without it: so nothing holds the image while rows are written.
Job = Callable[[], Callable[[], None]]

# The gallery's and the versions' rows are locked before any of this table, as who deletes one of them does. A gallery
# that is gone, and a generation that no open upgrade derives any more, get nothing.
_WRITE = """
INSERT INTO shadowed_queries (gallery_id, from_version_id, to_version_id, to_generation_id, embedding_from,
  side_information_from, embedding_to, answers_before, answers_after)
SELECT g.id, a.id, b.id, n.id, CAST(:embedding_from AS bytea), CAST(:side_information_from AS bytea),
  CAST(:embedding_to AS bytea), CAST(:answers_before AS bigint[]), CAST(:answers_after AS bigint[])
FROM galleries g, model_versions a, model_versions b, generations n
WHERE g.id = :gallery_id AND a.id = :from_version_id AND b.id = :to_version_id
  AND n.id = :to_generation_id AND n.state = :building
FOR KEY SHARE OF g, a, b
RETURNING id
"""

# Nobody waits for a row here, so nobody waits in a circle: who has a row locked removes it.
_REMOVE_BEYOND = """
DELETE FROM shadowed_queries WHERE id IN (
  SELECT id FROM shadowed_queries
  WHERE gallery_id = :gallery_id AND from_version_id = :from_version_id AND to_version_id = :to_version_id AND id <= (
    SELECT id FROM shadowed_queries
    WHERE gallery_id = :gallery_id AND from_version_id = :from_version_id AND to_version_id = :to_version_id
    ORDER BY id DESC OFFSET :kept LIMIT 1)
  FOR UPDATE SKIP LOCKED)
"""
_REMOVE_ALL = "DELETE FROM shadowed_queries WHERE id IN (SELECT id FROM shadowed_queries FOR UPDATE SKIP LOCKED)"
_ANSWERS = """
SELECT answers_before, answers_after FROM shadowed_queries
WHERE gallery_id = :gallery_id AND to_generation_id = :to_generation_id ORDER BY id
"""


class ShadowDraw:
    """Says which queries are shadowed: a random `share`, and at most `per_second` within any second. Safe to use from
    many threads."""

    def __init__(
        self,
        share: float,
        per_second: int,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self._draw = draw
        self._clock = clock
        self._lock = threading.Lock()
        self._last: deque[float] = deque(maxlen=per_second)

    def takes(self, share: float | None = None) -> bool:
        """Return whether the query that is asked now is drawn: of the share, or of another one."""
        if self._draw() >= (self.share if share is None else share):
            return False
        with self._lock:
            now = self._clock()
            if len(self._last) == self._last.maxlen and now - self._last[0] < 1.0:
                return False
            self._last.append(now)
            return True


@dataclass(frozen=True)
class _Asked:
    """An image query: the file, its embedding (D_from,) float32, and the pair that answers it and the candidate."""

    data: bytes
    embedding: Vectors
    active: ServedGeneration
    candidate: ServedGeneration


@dataclass(frozen=True)
class _Encoded:
    """The query without its image: φ_old (D_from,), ψ_old (S,) or None, and φ_new (D_to,), float32."""

    embedding_from: Vectors
    side_information_from: Vectors | None
    embedding_to: Vectors
    active: ServedGeneration
    candidate: ServedGeneration


class Shadowing:
    """Shadows this process's queries in a thread of its own; of a gallery and pair of versions, about `kept` stay."""

    def __init__(self, database: Database, encoders: Encoders, draw: ShadowDraw, kept: int) -> None:
        self._database = database
        self._encoders = encoders
        self._draw = draw
        self._kept = kept
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="shadowing", daemon=True)

    def start(self) -> None:
        """Begin to shadow; where the share is 0, remove what is kept first. In the background."""
        self._thread.start()

    def stop(self) -> None:
        """End after the query in hand; those that wait are dropped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def offer(self, data: bytes, embedding: Vectors, active: ServedGeneration, candidate: ServedGeneration) -> None:
        """Shadow an image query, with its embedding (D_from,) float32 by the active version, if it is drawn and not too
        many wait; returns at once."""
        if self._draw.takes():
            self.run_later(partial(self._encode, _Asked(data, embedding, active, candidate)))

    def draws(self, share: float) -> bool:
        """Return whether a query is one of a share, and of those that may be asked twice within this second."""
        return self._draw.takes(share)

    def run_later(self, job: Job) -> bool:
        """Do a job after those that wait already, if they are not too many; return at once whether they are not."""
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                return False
            self._waiting.append(job)
            self._changed.notify()
            return True

    def _run(self) -> None:
        if self._draw.share == 0:
            self._try(self._remove_all)
        with in_one_thread():
            while self._one_waits():
                self._try(self._do_first)

    def _one_waits(self) -> bool:
        """Wait until a query does, and return True; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            return not self._is_stopping

    def _do_first(self) -> None:
        self._waiting.popleft()()()  # read the image and let go of it, then do the rest

    def _encode(self, asked: _Asked) -> Callable[[], None]:
        try:
            active, candidate = (
                encoder_of(self._database, self._encoders, each.version) for each in (asked.active, asked.candidate)
            )
        except VersionWithoutNetworks:
            return lambda: None  # the candidate is asked by vectors alone
        images = [self._encoders.images.reduce(asked.data, [active.preprocessing, candidate.preprocessing])]
        side_information = active.encode_side_information(images)
        after = candidate.encode_embedding_apart(images)
        before = None if side_information is None else side_information[0]
        return partial(self._keep, _Encoded(asked.embedding, before, after[0], asked.active, asked.candidate))

    def _keep(self, query: _Encoded) -> None:
        side_information = query.side_information_from
        key = {
            "gallery_id": query.active.gallery_id,
            "from_version_id": query.active.version.id,
            "to_version_id": query.candidate.version.id,
        }
        values = {
            "to_generation_id": query.candidate.generation_id,
            "building": GenerationStage.BUILDING.value,
            "embedding_from": _bytes(query.embedding_from),
            "side_information_from": None if side_information is None else _bytes(side_information),
            "embedding_to": _bytes(query.embedding_to),
            "answers_before": _nearest(query.active, query.embedding_from),
            "answers_after": _nearest(query.candidate, query.embedding_to),
        }
        with self._database.session_scope() as session:
            if not session.execute(text(_WRITE), {**key, **values}).all():
                events.info("shadowed_query.unwanted", **key)
                return
            session.execute(text(_REMOVE_BEYOND), {**key, "kept": self._kept})

    def _remove_all(self) -> None:
        with self._database.session_scope() as session:
            session.execute(text(_REMOVE_ALL))

    def _try(self, step: Callable[[], None]) -> None:
        """Do what may fail at any time, by an encoder or in an outage: no query is to know."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - this loop is the process's only one; logged, and the query dropped
            reason = error.orig if isinstance(error, DBAPIError) else error  # a DBAPIError's own text has the vectors
            events.warning("shadowed_query.failed", reason=f"{type(error).__name__}: {reason}")


def _nearest(served: ServedGeneration, embedding: Vectors) -> list[int]:
    ids: list[int] = served.index.search(embedding[None], _K).ids[0].tolist()
    return ids


def _bytes(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()


def remove_old_shadowed(session: Session, days: float) -> None:
    """Remove the queries that were asked longer ago than so many days. Rows that somebody removes just now are left to
    them."""
    old = "SELECT id FROM shadowed_queries WHERE at < now() - make_interval(secs => :days * 86400)"
    session.execute(
        text(f"DELETE FROM shadowed_queries WHERE id = ANY(ARRAY({old} FOR UPDATE SKIP LOCKED))"), {"days": days}
    )


@dataclass(frozen=True)
class ShadowedAnswers:
    """What the active and the next generation answered to S queries: (S, 10) ids each, nearest first, padded with
    `NO_ID`."""

    before: Ids
    after: Ids


def shadowed_answers(session: Session, upgrade: Upgrade) -> ShadowedAnswers | None:
    """Return the answers that are kept of an upgrade's queries, oldest first; None where there are none."""
    key = {"gallery_id": upgrade.gallery_id, "to_generation_id": upgrade.to_generation_id}
    rows = session.execute(text(_ANSWERS), key).all()
    if not rows:
        return None
    return ShadowedAnswers(*(np.array([row[place] for row in rows], np.int64) for place in (0, 1)))
