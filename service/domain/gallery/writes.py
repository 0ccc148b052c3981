"""Writing items: staging rows before the gallery's lock, then one short transaction that holds it.

The steps of one write, all in one transaction:
1. COPY the items and their vectors into temporary tables (no lock is held; seconds, for a large import);
2. take the gallery's row and its next revisions;
3. check that the generations are still those that the vectors were made for;
4. upsert the items, then each generation's rows, in the order of item ids (so two writers never wait in a circle).
A crash anywhere before the commit leaves nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import driver_connection
from service.domain.gallery.galleries import lock_gallery
from service.domain.gallery.generations import (
    StoredGeneration,
    columns_of,
    stage_embeddings,
    stored_generations,
    upsert_clause,
)
from service.domain.gallery.new_items import NewItem
from service.tables import embeddings_table
from service.vectors.rows import EmbeddingRows


class GenerationsChanged(Exception):
    """An upgrade was planned, cut over or ended while vectors were being made; make them again and retry."""


@dataclass(frozen=True)
class Written:
    """The gallery's revision after a write, and which ids were there before."""

    revision: int
    replaced: frozenset[str]


def write_items(
    session: Session,
    gallery_id: int,
    items: Sequence[NewItem],
    expected: Sequence[StoredGeneration],
    rows_by_generation: dict[int, EmbeddingRows],
    active_generation_id: int | None = None,
) -> Written:
    """Write items and their rows; `rows.item_id` is the position in `items`, and revisions are given here.

    `expected` are the generations that were stored when the vectors were made. Generations without rows here (an
    import gives only the active one, and names it) are filled by catch-up. Raises `GenerationsChanged`.
    """
    _stage_items(session, items)
    by_id = {generation.id: generation for generation in expected}
    for generation_id, rows in rows_by_generation.items():
        stage_embeddings(session, _staging(generation_id), rows, by_id[generation_id].vector_format)
    gallery = lock_gallery(session, gallery_id, changes=len(items))
    stored = [generation.id for generation in stored_generations(session, gallery_id)]
    if stored != list(by_id) or active_generation_id not in (None, gallery.active_generation_id):
        raise GenerationsChanged
    parameters = {"gallery_id": gallery_id, "before": gallery.revision - len(items)}
    replaced = session.scalars(
        text(
            "SELECT s.external_id FROM staging_items s JOIN items i ON i.external_id = s.external_id"
            " AND i.gallery_id = :gallery_id AND i.deleted_at IS NULL"
        ),
        parameters,
    ).all()
    session.execute(text(_UPSERT_ITEMS), parameters)
    gallery.items += len(items) - len(replaced)
    for generation_id in sorted(rows_by_generation):
        generation = by_id[generation_id]
        columns = columns_of(generation.vector_format)
        session.execute(
            text(
                f"INSERT INTO {generation.table} (item_id, revision, origin, {columns})"
                f" SELECT i.id, i.revision, e.origin, {columns} FROM {_staging(generation_id)} e"
                " JOIN staging_items s ON s.position = e.item_id"
                " JOIN items i ON i.gallery_id = :gallery_id AND i.external_id = s.external_id"
                f" ORDER BY i.id {upsert_clause(generation.table, generation.vector_format)}"
            ),
            parameters,
        )
    return Written(gallery.revision, frozenset(replaced))


_UPSERT_ITEMS = """
INSERT INTO items AS i (gallery_id, external_id, metadata, label, thumbnail, revision)
SELECT :gallery_id, s.external_id, s.metadata, s.label, s.thumbnail, :before + s.position + 1
FROM staging_items s ORDER BY s.position
ON CONFLICT (gallery_id, external_id) DO UPDATE SET
    metadata = excluded.metadata, label = excluded.label, thumbnail = excluded.thumbnail,
    revision = excluded.revision, deleted_at = NULL,
    created_at = CASE WHEN i.deleted_at IS NULL THEN i.created_at ELSE now() END
"""


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
    """Delete live items and their rows in every generation; return the gallery's revision and how many there were."""
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
