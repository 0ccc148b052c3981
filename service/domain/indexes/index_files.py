"""Index files in the blob store: their names, and removing those that nothing names."""

import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.db import Database
from service.domain.generation_stage import STORED
from service.domain.job_state import JobState
from service.tables import Generation, Job

events = logs.Events(__name__)

INDEX_FOLDER = "indexes"
_INDEX_FILE = re.compile(r"generation_\d+\.(?:(?P<job_id>\d+)\.)?faiss")


def index_file(generation_id: int, job_id: int) -> str:
    """Return the name in the blob store of the index file that a job builds for a generation."""
    return f"{INDEX_FOLDER}/generation_{generation_id}.{job_id}.faiss"


def named_files(session: Session) -> set[str | None]:
    """Return the names of the indexes of all stored generations; None is among them where one has no index."""
    return set(session.scalars(select(Generation.index_name).where(Generation.state.in_(STORED))))


def remove_unneeded_files(database: Database, blobs: BlobStore) -> None:
    """Remove index files, whole or half-written, that no stored generation names and no running job builds.

    A file is named in the transaction that ends its job. The files are listed first, and then the rows are read in one
    snapshot, so that a file which is about to be named is never removed.
    """
    found = [(name, match["job_id"]) for name in blobs.list_files(INDEX_FOLDER) if (match := _INDEX_FILE.match(name))]
    if not found:
        return

    with database.session_scope(snapshot=True) as session:
        named = named_files(session)
        building = {str(id_) for id_ in session.scalars(select(Job.id).where(Job.state == JobState.RUNNING))}

    for name, job_id in found:
        if f"{INDEX_FOLDER}/{name}" not in named and job_id not in building:
            blobs.delete_file(f"{INDEX_FOLDER}/{name}")
            events.info("index.file_removed", name=name)
