"""A worker's sweep: it sends lost nudges again, says that the worker is alive, and removes what is left over."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.domain.indexes.removal import StillRead
from service.domain.upgrade.upgrades import cancel_upgrade
from service.queue import ADVANCE_BACKFILL, ADVANCE_TRAINING, ADVANCE_UPGRADE, BUILD_INDEX
from service.settings import Settings
from tests.backfills import begin_backfill
from tests.fakes import RecordingQueue
from tests.paired_vectors import paired_columns, parquet
from tests.rebuilds import create_gallery_with_rows_for_a_file, soon_due
from tests.scenario import start_upgrade
from tests.trainings import begin
from tests.working import run_until
from workers.app import WorkerParts
from workers.sweep import sweep


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_due(settings)


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_gallery_with_rows_for_a_file(client)
    return client


def nudges(worker: WorkerParts) -> list[tuple[str, tuple[int, ...]]]:
    """Sweep, and return what was sent."""
    queue = RecordingQueue()
    sweep(replace(worker, database=Database(worker.database.engine, queue)))
    return queue.sent


def alive_file(settings: Settings) -> Path:
    return settings.data / f"worker-{socket.gethostname()}.alive"


def left(worker: WorkerParts) -> tuple[list[str], list[str]]:
    """Return the names of all generations' tables, and of all index files."""
    query = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'embeddings\\_%' ORDER BY 1"
    with worker.database.session_scope() as session:
        return list(session.scalars(text(query))), worker.blobs.list_files("indexes")


def drop_candidate(gallery: TestClient, worker: WorkerParts) -> None:
    """Cancel an upgrade that is ready, by a process that dies before it removes what was dropped."""
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    with worker.database.session_scope() as session:
        cancel_upgrade(session, upgrade_id)


def test_whatever_a_worker_could_work_on_is_nudged(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    job_id = begin(gallery, parquet(paired_columns()))
    while_transforming = nudges(worker)

    run_until(worker, gallery, upgrade_id, "ready")

    unfinished = [(ADVANCE_UPGRADE, (upgrade_id,)), (ADVANCE_TRAINING, (job_id,))]
    assert while_transforming == unfinished  # a build would take a worker from the upgrade
    assert nudges(worker) == [*unfinished, (BUILD_INDEX, (1,))]


def test_a_backfill_is_nudged_until_it_has_ended(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    backfill_id = begin_backfill(gallery, source="client")

    while_planned = nudges(worker)
    gallery.post(f"/v1/backfills/{backfill_id}/cancel")
    after = nudges(worker)

    nudge = (ADVANCE_BACKFILL, (backfill_id,))
    assert (nudge in while_planned, nudge in after) == (True, False)


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_what_no_worker_is_to_work_on_is_not_nudged(gallery: TestClient, worker: WorkerParts, action: str) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    job_id = begin(gallery, parquet(paired_columns()))

    assert gallery.post(f"/v1/upgrades/{upgrade_id}/{action}").is_success
    assert gallery.post(f"/v1/jobs/{job_id}/cancel").is_success

    assert nudges(worker) == [(BUILD_INDEX, (1,))]


def test_a_worker_at_work_sends_and_removes_nothing_and_is_alive(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    drop_candidate(gallery, worker)
    start_upgrade(gallery, "v2")
    before = left(worker)

    worker.working.set()
    sent = nudges(worker)

    assert (sent, left(worker)) == ([], before)
    assert alive_file(settings).exists()


def test_what_a_dropped_generation_left_is_removed(gallery: TestClient, worker: WorkerParts) -> None:
    drop_candidate(gallery, worker)
    tables, files = left(worker)
    assert (tables, len(files)) == (["embeddings_1", "embeddings_2"], 1)

    nudges(worker)

    assert left(worker) == (["embeddings_1"], [])


def test_a_table_that_is_still_read_is_left_to_the_next_sweep_and_keeps_no_nudge_back(
    gallery: TestClient, worker: WorkerParts
) -> None:
    drop_candidate(gallery, worker)
    upgrade_id, queue = start_upgrade(gallery, "v2"), RecordingQueue()
    swept = replace(worker, database=Database(worker.database.engine, queue))

    with worker.database.session_scope() as reader:
        reader.execute(text("SELECT FROM embeddings_2"))
        with pytest.raises(StillRead):
            sweep(swept)
    kept, _ = left(worker)
    sweep(swept)

    assert queue.sent == [(ADVANCE_UPGRADE, (upgrade_id,))] * 2
    assert kept == ["embeddings_1", "embeddings_2", "embeddings_3"]
    assert left(worker) == (["embeddings_1", "embeddings_3"], [])


def test_every_sweep_touches_the_file_that_says_that_the_worker_is_alive(
    worker: WorkerParts, settings: Settings
) -> None:
    assert not alive_file(settings).exists()
    nudges(worker)
    os.utime(alive_file(settings), (0, 0))

    nudges(worker)

    assert alive_file(settings).stat().st_mtime > 0
