"""Death of a worker at every numbered step of building a new index file for a gallery that takes writes."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.db import Database
from service.queue import BUILD_INDEX
from service.settings import Settings
from tests.chaos import dying
from tests.fakes import RecordingQueue
from tests.scenario import create_gallery, import_vectors, post_images, register_version, search
from tests.served import wait_for
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index
from workers.sweep import sweep

POINTS = (
    "index.streamed",
    "index.built",
    "index.written",
    "index.synced",
    "index.renamed",
    "index.published",
    "index.named",
)
DEAD = 137


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"index_file_from_rows": 10, "rebuild_after_changes": 3, "rebuild_pause_seconds": 0.0}
    )


def swept(worker: WorkerParts) -> bool:
    """Sweep, and build what that asks for; return whether it asked for a build."""
    queue = RecordingQueue()
    sweep(replace(worker, database=Database(worker.database.engine, queue)))
    builds = [arguments[0] for task, arguments in queue.sent if task == BUILD_INDEX]
    for generation_id in builds:
        rebuild_index(worker, generation_id)
    return bool(builds)


def check_one_file(worker: WorkerParts) -> None:
    """There is the file that the generation's row names, and no other; and no job seems to run."""
    with worker.database.session_scope() as session:
        name = session.scalars(text("SELECT index_name FROM generations")).one()
        assert session.scalars(text("SELECT id FROM jobs WHERE state = 'running'")).all() == []
    assert [f"indexes/{file}" for file in worker.blobs.list_files("indexes")] == [name]


@pytest.mark.chaos
@pytest.mark.parametrize("point", POINTS)
def test_a_rebuild_that_dies_costs_nothing_and_leaves_nothing(
    client: TestClient, worker: WorkerParts, settings: Settings, point: str
) -> None:
    register_version(client, "v1")
    create_gallery(client)
    import_vectors(client, [f"vector-{number}" for number in range(20)])
    assert swept(worker)
    post_images(client, range(5))
    expected = {*(f"vector-{number}" for number in range(20)), *(f"image-{seed}.png" for seed in range(5))}
    wait_for(lambda: rested(worker))

    code = dying.exit_code_of(dying.rebuild, settings.model_copy(update={"crash_at": point}), 1)

    assert code == DEAD
    check_answers(client, expected)
    with TestClient(create_app(settings)) as started_now:
        check_answers(started_now, expected)
    wait_for(lambda: rested(worker))
    assert swept(worker) is (point != "index.named")
    check_one_file(worker)
    check_answers(client, expected)


def rested(worker: WorkerParts) -> bool:
    """Whether every build was followed by a rest as long as itself."""
    query = "SELECT count(*) FROM jobs WHERE updated_at + (updated_at - created_at) > now()"
    with worker.database.session_scope() as session:
        return bool(session.scalars(text(query)).one() == 0)


def check_answers(client: TestClient, expected: set[str]) -> None:
    found = search(client, 3, k=50)["neighbors"]
    assert {neighbor["id"] for neighbor in found} == expected
    assert (found[0]["id"], found[0]["distance"]) == ("image-3.png", pytest.approx(0, abs=1e-2))
