"""Writing items: vectors are made before the transaction, rows staged before the gallery's lock, which is held briefly.

The steps of one write, the last four in one transaction:
1. make the vectors, for the generations that are stored now (no transaction is open; seconds, for many images);
2. COPY the items and their vectors into temporary tables, a part at a time (no lock is held; a minute, for a large
   import, whose vectors are read here and not before);
3. take the gallery's row and its next revisions;
4. check that the generations are still those that the vectors were made for; if not, begin again at 1;
5. upsert the items, then each generation's rows, in the order of item ids (so two writers never wait in a circle), and
   keep their images where the gallery wants some (`service.domain.gallery.probe_images`).
A crash anywhere before the commit leaves nothing.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.audit import Act, Subject, record
from service.db import Database, driver_connection
from service.domain.gallery.galleries import get_gallery, lock_gallery
from service.domain.gallery.generations import (
    StoredGeneration,
    columns_of,
    create_staging,
    previous_generation,
    stored_generations,
    upsert_clause,
)
from service.domain.gallery.new_items import NewItem
from service.domain.gallery.probe_images import Originals, forget_probe_images, keep_probe_images
from service.errors import Unavailable
from service.metrics import INGESTED
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, Item, embeddings_table
from service.vectors.copy import write_rows
from service.vectors.rows import EmbeddingRows, Origin

_ATTEMPTS = 10


class GenerationsChanged(Exception):
    """An upgrade was planned, cut over or ended while vectors were being made; make them again and retry."""


@dataclass(frozen=True)
class Target:
    """A gallery and its stored generations, by id: what vectors are made for. `previous_generation_id`: what a rollback
    would make active again, if one is possible."""

    gallery: Gallery
    generations: Sequence[StoredGeneration]
    previous_generation_id: int | None


@dataclass(frozen=True)
class NewRows:
    """Items, and their rows by generation id, as `new_rows` makes them.

    Generations without rows here are filled by catch-up. `originals` are the images that may be kept, by the position
    of their items.
    """

    items: Sequence[NewItem]
    by_generation: dict[int, EmbeddingRows]
    originals: Originals = field(default_factory=dict)

    names_replaced: ClassVar[bool] = True
    active_generation_id: ClassVar[int | None] = None

    def parts(self) -> "Iterator[NewRows]":
        """Give it all at once."""
        yield self


class Incoming(Protocol):
    """What a write brings, in parts that need not be in memory together; all have rows for the same generations.

    `active_generation_id` is the one that must still be active, if one must. `names_replaced` says whether the write
    tells which ids were there before.
    """

    @property
    def originals(self) -> Originals: ...

    @property
    def names_replaced(self) -> bool: ...

    @property
    def active_generation_id(self) -> int | None: ...

    def parts(self) -> Iterator[NewRows]: ...


@dataclass(frozen=True)
class Written:
    """The gallery's revision after a write, how many items it brought, and, where that was to be told, which ids were
    there before."""

    revision: int
    items: int
    replaced: frozenset[str]


def count_ingested(written: Written, rejected: int) -> None:
    """Count what became of images, once the write has committed."""
    INGESTED.labels("image", "created").inc(written.items - len(written.replaced))
    INGESTED.labels("image", "replaced").inc(len(written.replaced))
    INGESTED.labels("image", "rejected").inc(rejected)


class Description(TypedDict, total=False):
    """What is said of an item anew; a key that is not there changes nothing."""

    label: str | None
    metadata: dict[str, Any]
    image_uri: str | None


_New = TypeVar("_New", bound=Incoming)


class Follower(Protocol):
    """What answers searches in this process: it sees a write before the writer goes on."""

    def sync(self, gallery_id: int, revision: int) -> None: ...


class NobodyFollows:
    """Of a process that answers no searches; those that do follow by themselves."""

    def sync(self, gallery_id: int, revision: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class GalleryWriter:
    """What writes to galleries need, made once per process; safe to use from many threads."""

    database: Database
    encoders: Encoders
    replicas: Follower
    settings: Settings

    def write(
        self,
        gallery_name: str,
        make: Callable[[Target], _New],
        busy: Unavailable,
        also: Callable[[Session, _New, Written], None] | None = None,
    ) -> tuple[_New, Written]:
        """Write what `make` gives, and return it; `make` runs again when the generations changed meanwhile.

        `also` runs last in the transaction that writes: what it does is done with the write, and what it raises undoes
        both.

        Raises `UnknownGallery` (404), and `busy` when the generations changed every time.
        """
        for _ in range(_ATTEMPTS):
            with self.database.session_scope(snapshot=True) as session:
                gallery = get_gallery(session, gallery_name)
                previous_id = previous_generation(session, gallery.active_generation_id)
                target = Target(gallery, stored_generations(session, gallery.id), previous_id)
            new = make(target)  # 1.
            try:
                with self.database.session_scope() as session:
                    written = write_items(session, target, new)
                    if also is not None:
                        also(session, new, written)
            except GenerationsChanged:
                continue
            self.replicas.sync(gallery.id, written.revision)
            return new, written
        raise busy


def new_rows(origin: Origin, embedding: NDArray[Any], side_information: NDArray[Any] | None) -> EmbeddingRows:
    """Return rows of items that are not written yet: `item_id` counts their positions in the request, and the revisions
    are given when they are written."""
    count = len(embedding)
    return EmbeddingRows(
        item_id=np.arange(count, dtype=np.int64),
        revision=np.zeros(count, np.int64),
        origin=np.full(count, origin, np.int16),
        hops=np.zeros(count, np.int16),
        uncertainty=np.zeros(count, np.float32),
        embedding=embedding,
        side_information=side_information,
    )


def write_items(session: Session, target: Target, new: Incoming) -> Written:
    """Do all steps but the first. Raises `GenerationsChanged`, and what reading the parts of `new` raises."""
    generations = {generation.id: generation for generation in target.generations}

    # 2.
    count, staged = _stage(session, generations, new)

    # 3.
    gallery = lock_gallery(session, target.gallery.id, changes=count)

    # 4.
    stored = [generation.id for generation in stored_generations(session, gallery.id)]
    if stored != list(generations) or new.active_generation_id not in (None, gallery.active_generation_id):
        raise GenerationsChanged

    # 5.
    parameters = {"gallery_id": gallery.id, "before": gallery.revision - count}
    replaced = session.scalar(text(f"SELECT count(*) {_LIVE_BEFORE}"), parameters) or 0
    names = session.scalars(text(f"SELECT s.external_id {_LIVE_BEFORE}"), parameters) if new.names_replaced else ()
    written = Written(gallery.revision, count, frozenset(names))
    session.execute(text(_UPSERT_ITEMS), parameters)
    gallery.items += count - replaced
    for generation_id in sorted(staged):
        _upsert_rows(session, generations[generation_id])
    keep_probe_images(session, gallery, new.originals)
    return written


_LIVE_BEFORE = """
FROM staging_items s
JOIN items i ON i.external_id = s.external_id AND i.gallery_id = :gallery_id AND i.deleted_at IS NULL
"""

_UPSERT_ITEMS = """
INSERT INTO items AS i (gallery_id, external_id, metadata, label, image_uri, thumbnail, revision)
SELECT :gallery_id, s.external_id, s.metadata, s.label, s.image_uri, s.thumbnail, :before + s.position + 1
FROM staging_items s ORDER BY s.position
ON CONFLICT (gallery_id, external_id) DO UPDATE SET
    metadata = excluded.metadata, label = excluded.label, image_uri = excluded.image_uri,
    thumbnail = excluded.thumbnail, revision = excluded.revision, deleted_at = NULL,
    created_at = CASE WHEN i.deleted_at IS NULL THEN i.created_at ELSE now() END
"""


def _upsert_rows(session: Session, generation: StoredGeneration) -> None:
    columns = columns_of(generation.vector_format)
    session.execute(
        text(
            f"INSERT INTO {generation.table} (item_id, revision, {columns})"
            f" SELECT i.id, i.revision, {columns} FROM {_staging(generation.id)} e"
            " JOIN staging_items s ON s.position = e.item_id"
            " JOIN items i ON i.gallery_id = :gallery_id AND i.external_id = s.external_id"
            f" ORDER BY i.id {upsert_clause(generation.table, generation.vector_format)}"
        ),
        {"gallery_id": generation.gallery_id},
    )


def _staging(generation_id: int) -> str:
    return f"staging_{int(generation_id)}"


def _stage(session: Session, generations: dict[int, StoredGeneration], new: Incoming) -> tuple[int, frozenset[int]]:
    """COPY all parts into temporary tables; return how many items there are, and which generations have rows."""
    session.execute(
        text(
            "CREATE TEMP TABLE staging_items (position bigint PRIMARY KEY, external_id text, metadata jsonb,"
            " label text, image_uri text, thumbnail bytea) ON COMMIT DROP"
        )
    )
    count = 0
    staged: set[int] = set()
    for part in new.parts():
        _stage_items(session, part.items, count)
        for generation_id, rows in part.by_generation.items():
            name, vector_format = _staging(generation_id), generations[generation_id].vector_format
            if generation_id not in staged:
                create_staging(session, name, vector_format)
                staged.add(generation_id)
            placed = replace(rows, item_id=rows.item_id + count)
            write_rows(driver_connection(session), name, placed, vector_format)
        count += len(part.items)
    session.execute(text("ANALYZE staging_items"))
    return count, frozenset(staged)


def _stage_items(session: Session, items: Sequence[NewItem], first: int) -> None:
    columns = "position, external_id, metadata, label, image_uri, thumbnail"
    with (
        driver_connection(session).cursor() as cursor,
        cursor.copy(f"COPY staging_items ({columns}) FROM STDIN") as copy,
    ):
        for position, item in enumerate(items, first):
            metadata = json.dumps(item.metadata)
            thumbnail = None if item.thumbnail is None else item.thumbnail()
            copy.write_row((position, item.external_id, metadata, item.label, item.image_uri, thumbnail))


def delete_items(session: Session, gallery_id: int, external_ids: Sequence[str]) -> tuple[int, int]:
    """Delete live items and their rows in every generation; return the gallery's revision and how many were deleted."""
    gallery = lock_gallery(session, gallery_id, changes=len(external_ids))
    deleted = session.scalars(
        text(
            "UPDATE items i SET deleted_at = now(), thumbnail = NULL, metadata = '{}', label = NULL,"
            " image_uri = NULL, revision = :before + u.position"
            " FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS u(external_id, position)"
            " WHERE i.gallery_id = :gallery_id AND i.external_id = u.external_id AND i.deleted_at IS NULL"
            " RETURNING i.id"
        ),
        {
            "gallery_id": gallery_id,
            "ids": list(external_ids),
            "before": gallery.revision - len(external_ids),
        },
    ).all()
    gallery.items -= len(deleted)
    if deleted:
        record(session, Act.ITEMS_DELETED, Subject("gallery", gallery.name), before={"items": len(deleted)})
    forget_probe_images(session, gallery_id, deleted)

    for generation in stored_generations(session, gallery_id):
        session.execute(
            text(f"DELETE FROM {embeddings_table(generation.id)} WHERE item_id = ANY(:ids)"),
            {"ids": list(deleted)},
        )
    return gallery.revision, len(deleted)


def redescribe_item(session: Session, gallery_id: int, item_id: int, changes: Description) -> int | None:
    """Change what is said of a live item, and return the gallery's revision; None when it is not live any more.

    The item has a new revision, so that whoever follows the gallery sees the change. Its current rows, in every
    generation, and its pairs of references take the revision along: the image is the same, so they stay what they are.
    A row that an upgrade makes meanwhile from the rows of before has the revision of before, and is made again.
    """
    gallery = lock_gallery(session, gallery_id, changes=1)
    item = session.scalar(
        select(Item)
        .where(Item.id == item_id, Item.deleted_at.is_(None))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if item is None:
        return None
    parameters = {"id": item.id, "before": item.revision, "after": gallery.revision}
    item.revision = gallery.revision
    item.label = changes.get("label", item.label)
    item.metadata_ = changes.get("metadata", item.metadata_)
    item.image_uri = changes.get("image_uri", item.image_uri)
    session.flush()
    tables = [embeddings_table(generation.id) for generation in stored_generations(session, gallery_id)]
    for table in [*tables, "reference_pairs"]:
        session.execute(
            text(f"UPDATE {table} SET revision = :after WHERE item_id = :id AND revision = :before"), parameters
        )
    return gallery.revision
