"""Vectors on their way out: a generation's current rows with their items' texts, as one table.

One answer is one snapshot (REPEATABLE READ), read in batches by item id, so that memory does not grow with the gallery
and what is written meanwhile is not seen. Its transaction is open until the table has been taken or given up: `close`
frees the connection.

A *cursor* continues after one of the rows, in a snapshot of its own. It holds while the generation's rows are the same:
the gallery has the same revision, and the generation as many current rows, because at one revision rows become current
(an upgrade brings what its generation lacks) and never cease to be.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from service import logs
from service.db import Database, driver_connection
from service.domain.gallery.current_rows import current_rows_query, is_current
from service.domain.gallery.galleries import find_open_upgrade, get_gallery
from service.domain.gallery.generations import (
    NoNextGeneration,
    NoSuchGeneration,
    StoredGeneration,
    gone_if_dropped,
    stored_generations,
)
from service.errors import GalleryError, TooManyRequests, Unprocessable
from service.tables import Gallery
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows
from service.vectors.table_streams import TableFormat, read_texts, table_batch, table_schema, table_stream

METADATA_KEY = "gallery_upgrade"  # in the schema's metadata: JSON, which rows these are
_FIRST_BATCH_ROWS, _MOST_BATCH_ROWS = 256, 16_384
_BATCH_BYTES = 8 * 2**20
_RETRY_AFTER_SECONDS = 10
CURSOR_PATTERN = r"^[0-9]{1,18}(\.[0-9]{1,18}){3}$"

events = logs.Events(__name__)


class NotACursor(Unprocessable):
    """The cursor did not come from an export of this gallery and generation."""


class CursorGone(GalleryError):
    """The rows that the cursor belongs to have changed, or are gone."""

    status_code = 410


class TooManyExports(TooManyRequests):
    """As many exports as may run at once in this process do."""


@dataclass(frozen=True)
class Position:
    """Where an export stopped: after an item, among `rows` current rows of a generation at a gallery's revision."""

    generation_id: int
    revision: int
    rows: int
    after_item_id: int

    @property
    def cursor(self) -> str:
        return f"{self.generation_id}.{self.revision}.{self.rows}.{self.after_item_id}"

    def after(self, item_id: int) -> "Position":
        return Position(self.generation_id, self.revision, self.rows, item_id)

    @staticmethod
    def of(cursor: str) -> "Position":
        """Return what a cursor says. Raises `NotACursor` (422)."""
        if not re.fullmatch(CURSOR_PATTERN, cursor):
            raise NotACursor("The cursor is not one that this service gave.")
        return Position(*map(int, cursor.split(".")))


@dataclass(frozen=True)
class Wanted:
    """What is to come out. `generation` is "active", "next" or an id; `limit` counts items, None is all of them."""

    gallery: str
    generation: str = "active"
    format: TableFormat = "arrow"
    limit: int | None = None
    cursor: str | None = None


@dataclass(frozen=True)
class _Plan:
    """`start` is where it begins, `last_item_id` where it ends (None: with the last row), `next` what follows."""

    gallery: str
    stored: StoredGeneration
    start: Position
    last_item_id: int | None
    next: Position | None


class Export:
    """An open export: `generation`, `model_version`, `revision` and `rows` (of the whole generation) name its snapshot;
    iterating gives the table's bytes. Whoever opened it closes it."""

    def __init__(self, plan: _Plan, blocks: Iterator[bytes], resources: ExitStack) -> None:
        self.generation = plan.stored.id
        self.model_version = plan.stored.version.name
        self.revision = plan.start.revision
        self.rows = plan.start.rows
        self.next_cursor = None if plan.next is None else plan.next.cursor
        self._blocks = blocks
        self._resources = resources

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        """End the transaction and give the connection back; nothing happens the second time."""
        self._resources.close()


class Exports:
    """Opens exports, at most so many at once in this process; safe to use from many threads."""

    def __init__(self, database: Database, at_once: int, batch_bytes: int = _BATCH_BYTES) -> None:
        self._database = database
        self._free = threading.BoundedSemaphore(at_once)
        self._batch_bytes = batch_bytes

    def open(self, wanted: Wanted) -> Export:
        """Return an export that is ready to be read.

        Raises `UnknownGallery` (404), `NoNextGeneration` (409), `NoSuchGeneration` and `CursorGone` (410), `NotACursor`
        (422) and `TooManyExports` (429).
        """
        if not self._free.acquire(blocking=False):
            raise TooManyExports("Too many exports are running; try again when one has ended.", _RETRY_AFTER_SECONDS)
        with ExitStack() as opening:
            opening.callback(self._free.release)
            session = opening.enter_context(self._database.session_scope(snapshot=True))
            with gone_if_dropped():
                plan = _plan(session, wanted)
            resources = opening.pop_all()
        blocks = _blocks(session, plan, wanted.format, self._batch_bytes)
        events.info("export.opened", gallery=wanted.gallery, generation_id=plan.stored.id, revision=plan.start.revision)
        return Export(plan, blocks, resources)


def _plan(session: Session, wanted: Wanted) -> _Plan:
    gallery = get_gallery(session, wanted.gallery)
    position = None if wanted.cursor is None else Position.of(wanted.cursor)
    stored = _chosen(session, gallery, wanted.generation, position)
    rows = gallery.items if stored.id == gallery.active_generation_id else _count_current(session, stored)
    start = Position(stored.id, gallery.revision, rows, 0)
    if position is not None:
        if position != start.after(position.after_item_id):
            raise CursorGone("The gallery has changed since the cursor was given; begin the export again without it.")
        start = position
    if wanted.limit is None:
        return _Plan(gallery.name, stored, start, None, None)
    last = _last_of_page(session, stored, start.after_item_id, wanted.limit)
    return _Plan(gallery.name, stored, start, last, None if last is None else start.after(last))


def _chosen(session: Session, gallery: Gallery, wanted: str, position: Position | None) -> StoredGeneration:
    """Return the generation: a cursor's own, whatever has become active since."""
    kept = {stored.id: stored for stored in stored_generations(session, gallery.id)}
    if position is not None:
        if wanted.isdecimal() and int(wanted) != position.generation_id:
            raise NotACursor(f"The cursor belongs to generation {position.generation_id}, not {wanted}.")
        if position.generation_id not in kept:
            raise CursorGone(f"Generation {position.generation_id}, which the cursor belongs to, is not kept any more.")
        return kept[position.generation_id]
    if wanted == "next":
        upgrade = find_open_upgrade(session, gallery.id)
        if upgrade is None or upgrade.to_generation_id == gallery.active_generation_id:
            raise NoNextGeneration(f"No upgrade of gallery {gallery.name!r} is on its way: it has no next generation.")
        return kept[upgrade.to_generation_id]
    chosen = gallery.active_generation_id if wanted == "active" else int(wanted)
    if chosen not in kept:
        names = ", ".join(map(str, kept))
        raise NoSuchGeneration(f"Gallery {gallery.name!r} keeps no generation {chosen}; it keeps {names}.")
    return kept[chosen]


def _count_current(session: Session, stored: StoredGeneration) -> int:
    query = f"SELECT count(*) FROM {stored.table} e JOIN items i ON {is_current('e')}"
    return session.scalar(text(query)) or 0


def _last_of_page(session: Session, stored: StoredGeneration, after_item_id: int, limit: int) -> int | None:
    """Return the id of the last of `limit` rows after one; None where no row follows it."""
    query = text(
        f"SELECT e.item_id FROM {stored.table} e JOIN items i ON {is_current('e')}"
        " WHERE e.item_id > :after AND i.id > :after ORDER BY e.item_id OFFSET :offset LIMIT 2"
    )
    found = session.scalars(query, {"after": after_item_id, "offset": limit - 1}).all()
    return found[0] if len(found) == 2 else None


def _blocks(session: Session, plan: _Plan, format_: TableFormat, batch_bytes: int) -> Iterator[bytes]:
    about = {
        "gallery": plan.gallery,
        "generation": plan.stored.id,
        "model_version": plan.stored.version.name,
        "revision": plan.start.revision,
    }
    schema = table_schema(plan.stored.vector_format, {METADATA_KEY: json.dumps(about)})
    stream = table_stream(format_, schema)
    after, count = plan.start.after_item_id, _FIRST_BATCH_ROWS
    while (last := _last_of_batch(session, plan, after, count)) is not None:
        rows = _read_batch(session, plan.stored, after, last)
        texts = _read_texts(session, plan.stored, after, last)
        after = last
        if rows is not None:
            batch = table_batch(schema, rows, read_texts(texts))
            count = min(_MOST_BATCH_ROWS, max(1, batch_bytes * len(rows) // batch.nbytes))
            yield stream.block(batch, plan.start.after(after).cursor)
    yield stream.finish()


def _last_of_batch(session: Session, plan: _Plan, after_item_id: int, count: int) -> int | None:
    """Return the id of the last of the next `count` rows, current or not; None after the last one.

    With both ends given, PostgreSQL reads a batch by the keys of both tables, and never joins all that is left of them.
    """
    query = text(
        f"SELECT max(item_id) FROM (SELECT item_id FROM {plan.stored.table} WHERE item_id > :after"
        " AND (CAST(:last AS bigint) IS NULL OR item_id <= :last) ORDER BY item_id LIMIT :count) batch"
    )
    last: int | None = session.scalar(query, {"after": after_item_id, "last": plan.last_item_id, "count": count})
    return last


_WITHIN = "e.item_id > %s AND e.item_id <= %s AND i.id > %s AND i.id <= %s"  # of i PostgreSQL does not conclude it


def _read_batch(session: Session, stored: StoredGeneration, after: int, last: int) -> EmbeddingRows | None:
    """Return the current rows after an item id, up to another; None where there are none."""
    query = current_rows_query(stored, stored.vector_format, _WITHIN)
    chunks = list(read_rows(driver_connection(session), query, [after, last] * 2, stored.vector_format))
    return EmbeddingRows.concatenate(chunks) if chunks else None


def _read_texts(session: Session, stored: StoredGeneration, after: int, last: int) -> bytes:
    """Return id, label, metadata and image URI of the items of the same rows, in the same order, as CSV."""
    query = (
        f"COPY (SELECT i.external_id, i.label, i.metadata, i.image_uri FROM {stored.table} e"
        f" JOIN items i ON {is_current('e')} WHERE {_WITHIN} ORDER BY e.item_id) TO STDOUT (FORMAT CSV)"
    )
    with driver_connection(session).cursor() as cursor, cursor.copy(query, [after, last] * 2) as copy:
        return b"".join(bytes(block) for block in copy)
