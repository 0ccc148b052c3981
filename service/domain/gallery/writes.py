"""Writing items: vectors are made before the transaction, rows staged before the gallery's lock, which is held briefly.

The steps of one write, the last four in one transaction:
1. make the vectors, for the generations that are stored now (no transaction is open; seconds, for many images);
2. COPY the items and their vectors into temporary tables (no lock is held; seconds, for a large import);
3. take the gallery's row and its next revisions;
4. check that the generations are still those that the vectors were made for; if not, begin again at 1;
5. upsert the items, then each generation's rows, in the order of item ids (so two writers never wait in a circle).
A crash anywhere before the commit leaves nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database, driver_connection
from service.domain.gallery.galleries import get_gallery, lock_gallery
from service.domain.gallery.generations import (
    StoredGeneration,
    columns_of,
    stage_embeddings,
    stored_generations,
    upsert_clause,
)
from service.domain.gallery.new_items import NewItem
from service.errors import Unavailable
from service.index.replica import Replicas
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Gallery, embeddings_table
from service.vectors.rows import EmbeddingRows, Origin

_ATTEMPTS = 10


class GenerationsChanged(Exception):
    """An upgrade was planned, cut over or ended while vectors were being made; make them again and retry."""


@dataclass(frozen=True)
class Target:
    """A gallery and its stored generations, by id: what vectors are made for."""

    gallery: Gallery
    generations: Sequence[StoredGeneration]


@dataclass(frozen=True)
class NewRows:
    """Items, and their rows by generation id, as `new_rows` makes them.

    Generations without rows here (an import gives only the active one, and names it) are filled by catch-up.
    """

    items: Sequence[NewItem]
    by_generation: dict[int, EmbeddingRows]
    active_generation_id: int | None = None


@dataclass(frozen=True)
class Written:
    """The gallery's revision after a write, and which ids were there before."""

    revision: int
    replaced: frozenset[str]


_New = TypeVar("_New", bound=NewRows)


@dataclass(frozen=True)
class GalleryWriter:
    """What writes to galleries need, made once per process; safe to use from many threads."""

    database: Database
    encoders: Encoders
    replicas: Replicas
    settings: Settings

    def write(self, gallery_name: str, make: Callable[[Target], _New], busy: Unavailable) -> tuple[_New, Written]:
        """Write what `make` gives, and return it; `make` runs again when the generations changed meanwhile.

        Raises `UnknownGallery` (404), and `busy` when the generations changed every time.
        """
        for _ in range(_ATTEMPTS):
            with self.database.session_scope(snapshot=True) as session:
                gallery = get_gallery(session, gallery_name)
                target = Target(gallery, stored_generations(session, gallery.id))
            new = make(target)  # 1.
            try:
                with self.database.session_scope() as session:
                    written = write_items(session, target, new)
            except GenerationsChanged:
                continue
            self.replicas.sync(gallery.id, written.revision)
            return new, written
        raise busy


def new_rows(
    origin: Origin, embedding: NDArray[Any], side_information: NDArray[Any] | None, first_position: int = 0
) -> EmbeddingRows:
    """Return rows of items that are not written yet: `item_id` counts their positions in the request, from
    `first_position` on, and the revisions are given when they are written."""
    count = len(embedding)
    return EmbeddingRows(
        item_id=np.arange(first_position, first_position + count, dtype=np.int64),
        revision=np.zeros(count, np.int64),
        origin=np.full(count, origin, np.int16),
        hops=np.zeros(count, np.int16),
        uncertainty=np.zeros(count, np.float32),
        embedding=embedding,
        side_information=side_information,
    )


def write_items(session: Session, target: Target, new: NewRows) -> Written:
    """Do all steps but the first. Raises `GenerationsChanged`."""
    generations = {generation.id: generation for generation in target.generations}

    # 2.
    _stage_items(session, new.items)
    for generation_id, rows in new.by_generation.items():
        stage_embeddings(session, _staging(generation_id), rows, generations[generation_id].vector_format)

    # 3.
    gallery = lock_gallery(session, target.gallery.id, changes=len(new.items))

    # 4.
    stored = [generation.id for generation in stored_generations(session, gallery.id)]
    if stored != list(generations) or new.active_generation_id not in (None, gallery.active_generation_id):
        raise GenerationsChanged

    # 5.
    parameters = {"gallery_id": gallery.id, "before": gallery.revision - len(new.items)}
    replaced = session.scalars(text(_LIVE_BEFORE), parameters).all()
    session.execute(text(_UPSERT_ITEMS), parameters)
    gallery.items += len(new.items) - len(replaced)
    for generation_id in sorted(new.by_generation):
        _upsert_rows(session, generations[generation_id])
    return Written(gallery.revision, frozenset(replaced))


_LIVE_BEFORE = """
SELECT s.external_id FROM staging_items s
JOIN items i ON i.external_id = s.external_id AND i.gallery_id = :gallery_id AND i.deleted_at IS NULL
"""

_UPSERT_ITEMS = """
INSERT INTO items AS i (gallery_id, external_id, metadata, label, thumbnail, revision)
SELECT :gallery_id, s.external_id, s.metadata, s.label, s.thumbnail, :before + s.position + 1
FROM staging_items s ORDER BY s.position
ON CONFLICT (gallery_id, external_id) DO UPDATE SET
    metadata = excluded.metadata, label = excluded.label, thumbnail = excluded.thumbnail,
    revision = excluded.revision, deleted_at = NULL,
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


def _stage_items(session: Session, items: Sequence[NewItem]) -> None:
    session.execute(
        text(
            "CREATE TEMP TABLE staging_items (position bigint PRIMARY KEY, external_id text, metadata jsonb,"
            " label text, thumbnail bytea) ON COMMIT DROP"
        )
    )

    columns = "position, external_id, metadata, label, thumbnail"
    with (
        driver_connection(session).cursor() as cursor,
        cursor.copy(f"COPY staging_items ({columns}) FROM STDIN") as copy,
    ):
        for position, item in enumerate(items):
            metadata = json.dumps(item.metadata)
            copy.write_row((position, item.external_id, metadata, item.label, item.thumbnail))
    session.execute(text("ANALYZE staging_items"))


def delete_items(session: Session, gallery_id: int, external_ids: Sequence[str]) -> tuple[int, int]:
    """Delete live items and their rows in every generation; return the gallery's revision and how many were deleted."""
    gallery = lock_gallery(session, gallery_id, changes=len(external_ids))
    deleted = session.scalars(
        text(
            "UPDATE items i SET deleted_at = now(), thumbnail = NULL, metadata = '{}', label = NULL,"
            " revision = :before + u.position"
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

    for generation in stored_generations(session, gallery_id):
        session.execute(
            text(f"DELETE FROM {embeddings_table(generation.id)} WHERE item_id = ANY(:ids)"),
            {"ids": list(deleted)},
        )
    return gallery.revision, len(deleted)
