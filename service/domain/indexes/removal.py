"""Removing what is not needed any more: dropped generations' tables, and index files that nothing names.

1. drop the table: waits for readers that took the generation before it was dropped, in a transaction of its own (crash
   point `removal.table` before it);
2. remove the files (`removal.files` before it, `removal.done` after it): those of dropped generations, those that a
   newer one has replaced, and what a build that failed or died has left.
Cancel, rollback and finalize call it before they answer, and an index build when it has ended; a crash before or
between leaves the rest to every worker's sweep. A process that has a file mapped keeps it.
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
_INDEX_FILE = re.compile(r"generation_\d+\.(?:(?P<job_id>\d+)\.)?faiss")

_DROPPED_WITH_TABLE = """
SELECT id FROM generations WHERE state = 'dropped' AND to_regclass('embeddings_' || id) IS NOT NULL ORDER BY id
"""


class StillRead(Unavailable):
    """A table could not be dropped in time, because something reads it."""


def index_file(generation_id: int, job_id: int) -> str:
    """Return the name in the blob store of the index file that a job builds for a generation."""
    return f"{INDEX_FOLDER}/generation_{generation_id}.{job_id}.faiss"


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
    remove_unneeded_files(database, blobs)
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


def remove_unneeded_files(database: Database, blobs: BlobStore) -> None:
    """Remove index files, whole or half-written, that no stored generation names and no running job builds.

    A file is named in the transaction that ends its job, and the files are listed before rows are looked at, all at one
    moment, so that one that is about to be named is never removed.
    """
    found = [(name, match["job_id"]) for name in blobs.list_files(INDEX_FOLDER) if (match := _INDEX_FILE.match(name))]
    if not found:
        return
    with database.session_scope(snapshot=True) as session:
        named = set(session.scalars(text("SELECT index_name FROM generations WHERE state <> 'dropped'")))
        building = {str(id_) for id_ in session.scalars(text("SELECT id FROM jobs WHERE state = 'running'"))}
    for name, job_id in found:
        if f"{INDEX_FOLDER}/{name}" not in named and job_id not in building:
            blobs.delete_file(f"{INDEX_FOLDER}/{name}")
            events.info("index.file_removed", name=name)
