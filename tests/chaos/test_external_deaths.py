"""A process that works on an upgrade of another store dies at each point; the next one goes on, and the store ends as
if nobody had died."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import service.app
from service.connectors.store import KeyRange
from service.queue import celery_application
from service.settings import Settings
from tests.chaos import dying
from tests.external_stores import open_fake
from tests.external_upgrades import (
    LATER_POINTS,
    SWITCH_POINTS,
    WORKER_POINTS,
    act,
    assert_upgraded,
    make_fake_parts,
    named,
    register_both,
    start,
    store_of_v1,
    view,
    work_until,
    work_until_removed,
)
from workers.app import WorkerParts, make_worker_parts

DEAD = 137

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("deaths")]
EVERYTHING = KeyRange(None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def settings(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"stores": named(path), "lease_seconds": 0.01})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings, make_fake_parts), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    yield parts
    parts.database.engine.dispose()


def dies(settings: Settings, step: dying.Step, point: str, upgrade_id: int) -> None:
    code = dying.exit_code_of(step, settings.model_copy(update={"crash_at": point}), upgrade_id)
    assert code == DEAD, point


@pytest.mark.parametrize("notices", [True, False])
@pytest.mark.parametrize("point", WORKER_POINTS)
def test_what_a_worker_died_of_is_done_by_the_next_one(
    client: TestClient, worker: WorkerParts, settings: Settings, path: Path, point: str, notices: bool
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, notices=notices)
    upgrade_id = start(client)

    dies(settings, dying.connect, point, upgrade_id)
    ready = work_until(worker, client, upgrade_id, "ready")

    assert_upgraded(worker, transformation, store)
    assert (ready["verification"]["repaired_ranges"], ready["error"]) == (0, None)
    # At most the range that the dead worker had was written twice.
    assert len(store.writes()) in (5, 6)


@pytest.mark.parametrize("point", SWITCH_POINTS)
def test_a_store_that_was_switched_is_recorded_as_live_and_not_switched_again(
    client: TestClient, worker: WorkerParts, settings: Settings, path: Path, point: str
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")

    dies(settings, dying.connect, point, upgrade_id)
    switched = store.is_switched()
    mine = np.ones(8, np.float32)
    store.put({"mine": (mine, np.ones(4, np.float32))})  # a user's, after the switch
    work_until(worker, client, upgrade_id, "live")

    assert switched
    found = store.read_new(EVERYTHING)
    np.testing.assert_array_equal(found.embedding[found.keys.index("mine")], mine)
    store.delete(["mine"])
    assert_upgraded(worker, transformation, store)


def test_a_rollback_that_died_after_the_store_did_it_is_done_by_asking_again(
    client: TestClient, worker: WorkerParts, settings: Settings, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")

    dies(settings, dying.roll_external_back, LATER_POINTS[0], upgrade_id)
    between = (store.is_switched(), view(client, upgrade_id)["state"])
    finalize = client.post(f"/v1/external-upgrades/{upgrade_id}/finalize")
    act(client, upgrade_id, "rollback")

    assert between == (False, "live")
    assert (finalize.status_code, finalize.json()["type"]) == (409, "urn:gallery-upgrade:switched-elsewhere")
    assert work_until_removed(worker, client, upgrade_id)["state"] == "rolled_back"


def test_what_is_removed_is_removed_once(
    client: TestClient, worker: WorkerParts, settings: Settings, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")
    new = store.read_new(EVERYTHING)
    act(client, upgrade_id, "finalize")

    dies(settings, dying.connect, LATER_POINTS[1], upgrade_id)
    work_until_removed(worker, client, upgrade_id)

    np.testing.assert_array_equal(store.read(EVERYTHING).embedding, new.embedding)
