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
from dataclasses import dataclass, field
from typing import Any

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
from service.errors import Unprocessable
from service.tables import embeddings_table
from service.vectors.rows import EmbeddingRows

MAX_ID_LENGTH = 512
MAX_METADATA_DEPTH = 64


class InvalidItem(Unprocessable):
    """An item's id, label or metadata cannot be stored."""


class GenerationsChanged(Exception):
    """An upgrade was planned, cut over or ended while vectors were being made; make them again and retry."""


@dataclass(frozen=True)
class NewItem:
    """What a user says about one item."""

    external_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Written:
    """The gallery's revision after a write, and which ids were there before."""

    revision: int
    replaced: frozenset[str]


def check_items(items: Sequence[NewItem], max_metadata_bytes: int) -> None:
    """Raise `InvalidItem` (422) for an id, label or metadata that cannot be stored, or an id that occurs twice."""
    seen: set[str] = set()
    for item in items:
        check_external_id(item.external_id)
        if item.external_id in seen:
            raise InvalidItem(f"The id {item.external_id!r} occurs twice in this request.")
        seen.add(item.external_id)
        if item.label is not None and (not _storable(item.label) or len(item.label) > MAX_ID_LENGTH):
            raise InvalidItem(f"The label of {item.external_id!r} cannot be stored: at most 512 characters, no NUL.")
        if _nested_deeper(item.metadata, MAX_METADATA_DEPTH):
            raise InvalidItem(f"The metadata of {item.external_id!r} is nested deeper than {MAX_METADATA_DEPTH}.")
        encoded = json.dumps(item.metadata, ensure_ascii=False)
        if len(encoded) > max_metadata_bytes:
            raise InvalidItem(f"The metadata of {item.external_id!r} is larger than {max_metadata_bytes} bytes.")
        if not _storable(encoded) or "\\u0000" in encoded or "NaN" in encoded or "Infinity" in encoded:
            _check_metadata_values(item.external_id, item.metadata)


def _nested_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested_deeper(child, levels - 1) for child in children)


def check_external_id(external_id: str) -> None:
    """Raise `InvalidItem` unless the id has 1 to 512 characters, all printable, and does not end in /thumbnail."""
    if not 1 <= len(external_id) <= MAX_ID_LENGTH:
        raise InvalidItem("An id has 1 to 512 characters.")
    if not _storable(external_id) or any(ord(character) < 32 or ord(character) == 127 for character in external_id):
        raise InvalidItem(f"The id {external_id!r} has control characters or is not valid Unicode.")
    if external_id.endswith("/thumbnail") or external_id in (".", ".."):
        raise InvalidItem(f"The id {external_id!r} could not be addressed in a URL.")


def _storable(value: str) -> bool:
    """PostgreSQL stores no NUL and no lone surrogate."""
    return "\x00" not in value and not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _check_metadata_values(external_id: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_metadata_values(external_id, key)
            _check_metadata_values(external_id, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_metadata_values(external_id, inner)
    elif isinstance(value, str) and not _storable(value):
        raise InvalidItem(f"The metadata of {external_id!r} has a NUL or is not valid Unicode.")
    elif isinstance(value, float) and value - value != 0:
        raise InvalidItem(f"The metadata of {external_id!r} has a number that is not finite.")


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
