"""Index files: their names, and the removal of those that no row names and no job builds."""

import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, text

from service.domain.indexes.index_files import index_file, named_files, remove_unneeded_files
from service.domain.jobs import start_job, succeed_job
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


def test_only_files_that_are_named_or_being_built_or_of_no_index_are_left(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    with worker.database.session_scope() as session:
        (named,) = named_files(session)
        building = start_job(session, "index_build", 1, 1, upgrade_id=None)
        ended = start_job(session, "index_build", 1, 1, upgrade_id=None)
        succeed_job(session, ended, {})
    assert named is not None
    kept = [index_file(1, building), f"{index_file(2, building)}.0a1b.part", "indexes/notes.txt"]
    for name in (*kept, index_file(1, ended), f"{index_file(1, ended)}.0a1b.part", "indexes/generation_1.faiss"):
        worker.blobs.publish(name, Path.touch)

    remove_unneeded_files(worker.database, worker.blobs)

    assert {f"indexes/{name}" for name in worker.blobs.list_files("indexes")} == {named, *kept}


def test_the_file_of_a_dropped_generation_is_removed(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE generations SET state = 'dropped' WHERE id = 1"))

    remove_unneeded_files(worker.database, worker.blobs)

    assert worker.blobs.list_files("indexes") == []


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
