"""Putting rows that were encoded from pixels in the place of those that h made, in one generation.

To whoever follows the gallery this is a write: the items take the next revisions, so replicas, Milvus collections,
index builds and catch-up see them as they see any change. What the other generations have of these items is as good as
it was, so their rows, and the items' reference pairs, move to the same revision unchanged: a generation that was
complete stays so, and a rollback finds what it left.

The steps, in one transaction, which is the caller's:
1. COPY the rows into a temporary table (no lock is held);
2. take the gallery's row and its next revisions, as every write does, and check that the generation is still stored;
3. move those items on that are as they were when their image was taken, and whose row is still h's: an item that was
   written again or deleted meanwhile is left alone;
4. replace their rows in the generation, and move on their other rows and their reference pairs.
"""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.crash_points import crash_point
from service.domain.gallery.current_rows import is_current
from service.domain.gallery.galleries import lock_gallery
from service.domain.gallery.generations import (
    GenerationKey,
    StoredGeneration,
    get_stored_generation,
    stage_embeddings,
    stored_generations,
)
from service.tables import embeddings_table
from service.vectors.rows import EmbeddingRows, Origin

_STAGING, _MOVED = "staging_better", "moved_items"


def made_by_h(row: str, item: str = "i") -> str:
    """Return the SQL condition that a generation's row is an item's current one, and h made it."""
    return f"{is_current(row, item)} AND {row}.origin = {int(Origin.TRANSFORMED)}"


def put_better_rows(session: Session, generation: StoredGeneration, rows: EmbeddingRows) -> tuple[int, frozenset[int]]:
    """Do all steps; return the gallery's revision, and the ids of the items whose row was replaced.

    `rows.revision` are those of the items when their images were taken. Raises `GenerationGone`.
    """
    # 1.
    stage_embeddings(session, _STAGING, rows, generation.vector_format)
    session.execute(text(f"CREATE TEMP TABLE {_MOVED} (item_id bigint, before bigint, after bigint) ON COMMIT DROP"))

    # 2.
    gallery = lock_gallery(session, generation.gallery_id, changes=len(rows))
    get_stored_generation(session, gallery.id, generation.id)

    # 3.
    before = gallery.revision - len(rows)
    moved = _move_items(session, generation, before)

    # 4.
    _replace_rows(session, generation)
    for other in stored_generations(session, gallery.id):
        if other.id != generation.id:
            _move_rows(session, other.key)
    _move_pairs(session, gallery.id)
    crash_point("backfill.written")
    return gallery.revision, frozenset(moved)


def _move_items(session: Session, generation: StoredGeneration, before: int) -> Sequence[int]:
    return session.scalars(
        text(
            "WITH moved AS ("
            f" UPDATE items i SET revision = :before + s.place FROM {generation.table} e,"
            f" (SELECT item_id, revision, row_number() OVER (ORDER BY item_id) AS place FROM {_STAGING}) s"
            f" WHERE i.id = s.item_id AND i.gallery_id = :gallery_id AND i.revision = s.revision AND {made_by_h('e')}"
            " RETURNING i.id, s.revision AS before, i.revision AS after)"
            f" INSERT INTO {_MOVED} SELECT id, before, after FROM moved RETURNING item_id"
        ),
        {"gallery_id": generation.gallery_id, "before": before},
    ).all()


def _replace_rows(session: Session, generation: StoredGeneration) -> None:
    columns = generation.vector_format.column_names[2:]
    assignments = ", ".join(f"{column} = s.{column}" for column in columns)
    _lock_rows(session, generation.key)
    session.execute(
        text(
            f"UPDATE {generation.table} e SET revision = m.after, {assignments}"
            f" FROM {_MOVED} m JOIN {_STAGING} s ON s.item_id = m.item_id WHERE e.item_id = m.item_id"
        )
    )


def _move_rows(session: Session, generation: GenerationKey) -> None:
    _lock_rows(session, generation)
    session.execute(
        text(
            f"UPDATE {embeddings_table(generation.generation_id)} e SET revision = m.after FROM {_MOVED} m"
            " WHERE e.item_id = m.item_id AND e.revision = m.before"
        )
    )


def _lock_rows(session: Session, generation: GenerationKey) -> None:
    """Lock the moved items' rows in the order of their ids, as batches and writes do, so that no two wait in a
    circle."""
    table = embeddings_table(generation.generation_id)
    session.execute(
        text(f"SELECT FROM {table} e JOIN {_MOVED} m ON m.item_id = e.item_id ORDER BY e.item_id FOR UPDATE OF e")
    )


def _move_pairs(session: Session, gallery_id: int) -> None:
    session.execute(
        text(
            f"UPDATE reference_pairs p SET revision = m.after FROM {_MOVED} m"
            " WHERE p.gallery_id = :gallery_id AND p.item_id = m.item_id AND p.revision = m.before"
        ),
        {"gallery_id": gallery_id},
    )
