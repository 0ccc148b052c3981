"""Removing what dropped generations leave: their tables and their index files.

1. drop the table: waits for readers that took the generation before it was dropped, in a transaction of its own (crash
   point `removal.table` before it);
2. remove the files (`removal.files` before it, `removal.done` after it).
Cancel, rollback and finalize call it before they answer; a crash before or between leaves the rest to every worker's
sweep.
"""

import re

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service import logs
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.errors import Unavailable
from service.tables import drop_embeddings_table

events = logs.Events(__name__)

INDEX_FOLDER = "indexes"
_INDEX_FILE = re.compile(r"generation_(\d+)\.")

_DROPPED_WITH_TABLE = """
SELECT id FROM generations WHERE state = 'dropped' AND to_regclass('embeddings_' || id) IS NOT NULL ORDER BY id
"""


class StillRead(Unavailable):
    """A table could not be dropped in time, because something reads it."""


def index_file(generation_id: int) -> str:
    """Return the name of a generation's index file in the blob store."""
    return f"{INDEX_FOLDER}/generation_{generation_id}.faiss"


def remove_dropped(database: Database, blobs: BlobStore, wait_seconds: float) -> None:
    """Remove the tables and index files of every dropped generation.

    Raises `StillRead` (503) when a table is still read after `wait_seconds`; the next call tries again.
    """
    with database.session_scope() as session:
        generation_ids = session.scalars(text(_DROPPED_WITH_TABLE)).all()
    for generation_id in generation_ids:
        crash_point("removal.table")
        _drop_table(database, generation_id, wait_seconds)
    crash_point("removal.files")
    _remove_files(database, blobs)
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


def _remove_files(database: Database, blobs: BlobStore) -> None:
    """Remove index files, whole or half-written, of generations that have no table any more."""
    found = {name: int(match[1]) for name in blobs.list_files(INDEX_FOLDER) if (match := _INDEX_FILE.match(name))}
    if not found:
        return
    with database.session_scope() as session:
        stored = set(session.scalars(text("SELECT id FROM generations WHERE state <> 'dropped'")))
    for name, generation_id in found.items():
        if generation_id not in stored:
            blobs.delete_file(f"{INDEX_FOLDER}/{name}")
            events.info("index.file_removed", name=name)
