"""Reading generations' rows in tests."""

from sqlalchemy.orm import Session

from service.db import driver_connection
from service.domain.gallery.generations import StoredGeneration, get_stored_generation
from service.domain.upgrade.upgrades import get_upgrade
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows
from workers.app import WorkerParts


def rows_of(session: Session, generation: StoredGeneration) -> EmbeddingRows:
    """Return every row of a generation, by item id."""
    columns = ", ".join(generation.vector_format.column_names)
    query = f"SELECT {columns} FROM {generation.table} ORDER BY item_id"
    return EmbeddingRows.concatenate(list(read_rows(driver_connection(session), query, (), generation.vector_format)))


def all_rows(worker: WorkerParts, upgrade_id: int) -> tuple[EmbeddingRows, EmbeddingRows]:
    """Return every row of an upgrade's source and target generations, by item id."""
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
        source = get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id)
        target = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)
        return rows_of(session, source), rows_of(session, target)
