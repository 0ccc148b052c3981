"""Removing what is not needed any more: dropped generations' tables, and indexes that nothing names.

1. drop the table: waits for readers that took the generation before it was dropped, in a transaction of its own (crash
   point `removal.table` before it);
2. let the engine remove the indexes (`removal.files` before it, `removal.done` after it): those of dropped generations,
   those that a newer one has replaced, and what a build that failed or died has left.
Cancel, rollback and finalize do both before they answer. A crash before or between leaves the rest to every worker's
sweep. A process that has a file mapped keeps it.
"""

from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from service import logs
from service.crash_points import crash_point
from service.db import Database
from service.domain.generation_stage import GenerationStage
from service.domain.indexes.engine import IndexEngine
from service.errors import Unavailable
from service.tables import Generation, drop_embeddings_table

events = logs.Events(__name__)


class StillRead(Unavailable):
    """A table could not be dropped in time, because something reads it."""


def remove_dropped(database: Database, engine: IndexEngine, wait_seconds: float) -> None:
    """Remove the tables and indexes of every dropped generation.

    Raises `StillRead` (503) when a table is still read after `wait_seconds`, or what the engine raises when an index is
    still in use; the next call tries again.
    """
    # 1.
    has_table = func.to_regclass(func.concat("embeddings_", Generation.id)).is_not(None)
    dropped = select(Generation.id).where(Generation.state == GenerationStage.DROPPED, has_table)
    with database.session_scope() as session:
        generation_ids = session.scalars(dropped.order_by(Generation.id)).all()
    for generation_id in generation_ids:
        crash_point("removal.table")
        _drop_table(database, generation_id, wait_seconds)

    # 2.
    crash_point("removal.files")
    engine.remove_unneeded(wait_seconds)
    crash_point("removal.done")


def _drop_table(database: Database, generation_id: int, wait_seconds: float) -> None:
    try:
        with database.session_scope() as session:
            session.execute(text(f"SET LOCAL lock_timeout = {int(wait_seconds * 1000)}"))
            drop_embeddings_table(session, generation_id)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        raise StillRead(
            f"The rows of generation {generation_id} are still being read; they are removed when that has ended."
        ) from error
    events.info("generation.removed", generation_id=generation_id)
