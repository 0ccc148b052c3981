"""Removal of index files that no row names."""

import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, text

from service.domain.indexes.index_files import index_file, remove_unneeded_files
from service.domain.jobs import start_job
from service.settings import Settings
from tests.rebuilds import create_gallery_with_rows_for_a_file, rebuild, soon_due
from workers.app import WorkerParts


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_due(settings)


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_gallery_with_rows_for_a_file(client)
    return client


def test_a_file_that_gets_its_name_while_unneeded_ones_are_removed_stays(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    with worker.database.session_scope() as session:
        job_id = start_job(session, "index_build", 1, 1, upgrade_id=None)
    new = index_file(1, job_id)
    worker.blobs.publish(new, Path.touch)
    named = threading.Event()

    def name_it(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if "FROM generations" in statement and not named.is_set():
            named.set()
            with worker.database.session_scope() as session:
                session.execute(text("UPDATE generations SET index_name = :new WHERE id = 1"), {"new": new})
                session.execute(text("UPDATE jobs SET state = 'succeeded' WHERE id = :id"), {"id": job_id})

    event.listen(worker.database.engine, "after_cursor_execute", name_it)
    try:
        remove_unneeded_files(worker.database, worker.blobs)
    finally:
        event.remove(worker.database.engine, "after_cursor_execute", name_it)

    assert named.is_set()
    assert Path(new).name in worker.blobs.list_files("indexes")
