"""Which rows are current, and reading them. The condition that promise 2 rests on is spelled here alone.

A generation's row is *current* if it has its item's revision and the item is live.
"""

from collections.abc import Iterator

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database, driver_connection
from service.domain.gallery.generations import GenerationKey, StoredGeneration, gone_if_dropped
from service.index.protocol import Ids, Vectors
from service.tables import embeddings_table
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, VectorFormat


def has_revision(row: str, item: str = "i") -> str:
    """Return the SQL condition that a row, of a generation or of references, is of an item as it is: it has the item's
    revision."""
    return f"{row}.item_id = {item}.id AND {row}.revision = {item}.revision"


def is_current(row: str, item: str = "i") -> str:
    """Return the SQL condition that a generation's row is the current one of an item; both are aliases of tables."""
    return f"{has_revision(row, item)} AND {item}.deleted_at IS NULL"


def has_current(table: str, item: str = "i") -> str:
    """Return the SQL condition that a live item has a current row in a generation's table."""
    return f"EXISTS (SELECT FROM {table} c WHERE {has_revision('c', item)})"


def lacks_current(table: str, item: str = "i", within: str = "true") -> str:
    """Return the SQL condition that a live item has no current row in a generation's table. `within` limits the rows of
    the table that are looked at; they are `c` in it."""
    return f"NOT EXISTS (SELECT FROM {table} c WHERE {has_revision('c', item)} AND {within})"


def current_rows_query(stored: StoredGeneration, vector_format: VectorFormat, where: str = "true") -> str:
    """Return the query of a generation's current rows, with the columns of a format, as
    `service.vectors.copy.read_rows` wants it; `e` and `i` are the embeddings row and its item in `where`."""
    columns = ", ".join(f"e.{name}" for name in vector_format.column_names)
    return f"SELECT {columns} FROM {stored.table} e JOIN items i ON {is_current('e')} WHERE {where} ORDER BY e.item_id"


def read_current_rows(
    session: Session, stored: StoredGeneration, rows_per_chunk: int, ids: Ids | None = None
) -> Iterator[EmbeddingRows]:
    """Stream a generation's current rows (embeddings only), all of them or those among `ids`, by item id.

    Raises `GenerationGone`.
    """
    where = "true" if ids is None else "i.id = ANY(%s)"
    vector_format = _embeddings_only(stored)
    query = current_rows_query(stored, vector_format, where)
    parameters = () if ids is None else (ids.tolist(),)
    with gone_if_dropped():
        yield from read_rows(driver_connection(session), query, parameters, vector_format, rows_per_chunk)


def read_next_rows(
    session: Session, stored: StoredGeneration, after_item_id: int, up_to_revision: int, count: int
) -> EmbeddingRows | None:
    """Return the first `count` current rows (embeddings only) after an item id, of those no newer than a revision; None
    when there are no more. Raises `GenerationGone`."""
    where = "e.item_id > %s AND i.id > %s AND e.revision <= %s"  # i.id: PostgreSQL does not conclude it
    vector_format = _embeddings_only(stored)
    query = f"{current_rows_query(stored, vector_format, where)} LIMIT {int(count)}"
    parameters = (after_item_id, after_item_id, up_to_revision)
    with gone_if_dropped():
        chunks = list(read_rows(driver_connection(session), query, parameters, vector_format))
    return EmbeddingRows.concatenate(chunks) if chunks else None


def stream_rows(
    database: Database, stored: StoredGeneration, up_to_revision: int, rows_at_once: int
) -> Iterator[tuple[Ids, Vectors]]:
    """Give the rows that are current and no newer than a revision, by item id: (n,) ids and (n, D) float32 embeddings
    at a time, each from a short transaction of its own."""
    last = 0
    while True:
        with database.session_scope() as session:
            rows = read_next_rows(session, stored, last, up_to_revision, rows_at_once)
        if rows is None:
            return
        yield rows.item_id, rows.embedding.astype(np.float32)
        last = int(rows.item_id[-1])


def read_current_vectors(
    session: Session, stored: StoredGeneration, rows_per_chunk: int, ids: Ids
) -> tuple[Ids, Vectors]:
    """Return those of the ids that have a current row, ascending (N,), and their embeddings (N, D) float32."""
    found, vectors = [np.empty(0, np.int64)], [np.empty((0, stored.vector_format.embedding_dim), np.float32)]
    for rows in read_current_rows(session, stored, rows_per_chunk, ids) if len(ids) else ():
        found.append(rows.item_id)
        vectors.append(rows.embedding.astype(np.float32))
    return np.concatenate(found), np.concatenate(vectors)


def live_ids(session: Session, gallery_id: int) -> Ids:
    """Return every live item's id, by COPY: there may be many millions."""
    query = "COPY (SELECT id FROM items WHERE gallery_id = %s AND deleted_at IS NULL) TO STDOUT"
    with driver_connection(session).cursor() as cursor, cursor.copy(query, (gallery_id,)) as copy:
        data = b"".join(bytes(block) for block in copy)
    return np.fromstring(data, dtype=np.int64, sep="\n") if data else np.empty(0, np.int64)


def items_lacking_current(table: str) -> str:
    """Return the SQL that follows FROM for a gallery's live items, as `i`, that changed after the revision `:after` and
    have no current row in a generation's table."""
    return (
        "items i WHERE i.gallery_id = :gallery_id AND i.revision > :after AND i.deleted_at IS NULL"
        f" AND {lacks_current(table)}"
    )


def missing_items(session: Session, generation: GenerationKey, after_revision: int = 0) -> list[int]:
    """Return the ids of live items, changed after a revision, without a current row in the generation: promise 2."""
    lacking = items_lacking_current(embeddings_table(generation.generation_id))
    query = text(f"SELECT i.id FROM {lacking} ORDER BY i.id")
    return list(session.scalars(query, {"gallery_id": generation.gallery_id, "after": after_revision}))


def first_missing_between(
    session: Session, generation: GenerationKey, after_revision: int, up_to_revision: int
) -> int | None:
    """Return the lowest revision of a live item, changed within (after, up to], that has no current row in the
    generation; None where each has one."""
    lacking = items_lacking_current(embeddings_table(generation.generation_id))
    query = text(f"SELECT min(i.revision) FROM {lacking} AND i.revision <= :up_to")
    parameters = {"gallery_id": generation.gallery_id, "after": after_revision, "up_to": up_to_revision}
    first: int | None = session.scalars(query, parameters).one()
    return first


def count_missing(session: Session, generation: GenerationKey, up_to_revision: int) -> int:
    """Return how many live items, no newer than a revision, have no current row in the generation."""
    lacking = items_lacking_current(embeddings_table(generation.generation_id))
    query = text(f"SELECT count(*) FROM {lacking} AND i.revision <= :up_to")
    parameters = {"gallery_id": generation.gallery_id, "after": 0, "up_to": up_to_revision}
    return session.scalar(query, parameters) or 0


def delete_orphans(session: Session, generation: GenerationKey, after_revision: int, up_to_revision: int) -> None:
    """Remove rows of items that were deleted, within (after, up to], while a batch was writing them.

    No batch may be in flight. One that starts later sees the deletions, so it writes no such row again.
    """
    query = text(
        f"DELETE FROM {embeddings_table(generation.generation_id)} e USING items i WHERE e.item_id = i.id"
        " AND i.gallery_id = :gallery_id AND i.revision > :after AND i.revision <= :up_to AND i.deleted_at IS NOT NULL"
    )
    parameters = {"gallery_id": generation.gallery_id, "after": after_revision, "up_to": up_to_revision}
    session.execute(query, parameters)


def _embeddings_only(stored: StoredGeneration) -> VectorFormat:
    return VectorFormat(stored.vector_format.embedding_dim, None, stored.vector_format.dtype)
