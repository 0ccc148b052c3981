"""Removal of what dropped generations leave, in two steps."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.indexes import removal
from service.domain.indexes.removal import remove_dropped
from service.domain.upgrade.upgrades import cancel_upgrade
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


@pytest.fixture
def worker(client: TestClient, worker: WorkerParts) -> WorkerParts:
    """A worker beside a gallery of which one generation is stored, and another one was dropped with table and file."""
    create_upgradable_gallery(client)
    post_images(client, range(3))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    with worker.database.session_scope() as session:
        cancel_upgrade(session, upgrade_id)
    return worker


def left(worker: WorkerParts) -> tuple[list[str], int]:
    """Return the names of all generations' tables, and how many index files there are."""
    query = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'embeddings\\_%' ORDER BY 1"
    with worker.database.session_scope() as session:
        return list(session.scalars(text(query))), len(worker.blobs.list_files("indexes"))


def test_only_what_is_dropped_is_removed_and_a_second_time_finds_nothing(worker: WorkerParts) -> None:
    before = left(worker)

    for _ in range(2):
        remove_dropped(worker.database, worker.engine, wait_seconds=1)

        assert left(worker) == (["embeddings_1"], 0)
    assert before == (["embeddings_1", "embeddings_2"], 1)


@pytest.mark.parametrize("point", ["removal.table", "removal.files", "removal.done"])
def test_what_a_crash_between_the_steps_leaves_the_next_removal_takes(
    worker: WorkerParts, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "crash_point", die)
        with pytest.raises(KeyboardInterrupt):
            remove_dropped(worker.database, worker.engine, wait_seconds=1)
    remove_dropped(worker.database, worker.engine, wait_seconds=1)

    assert left(worker) == (["embeddings_1"], 0)
