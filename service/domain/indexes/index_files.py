"""Index files in the blob store: their names, and removing those that nothing names."""

import re

from sqlalchemy import text

from service import logs
from service.blobs import BlobStore
from service.db import Database

events = logs.Events(__name__)

INDEX_FOLDER = "indexes"
_INDEX_FILE = re.compile(r"generation_\d+\.(?:(?P<job_id>\d+)\.)?faiss")


def index_file(generation_id: int, job_id: int) -> str:
    """Return the name in the blob store of the index file that a job builds for a generation."""
    return f"{INDEX_FOLDER}/generation_{generation_id}.{job_id}.faiss"


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
