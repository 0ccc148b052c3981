"""Networks that never end cost their own sender only: at registration, for images, and in an upgrade."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.app import create_app
from service.queue import celery_application
from service.settings import Settings
from service.tables import UpgradeBatch
from tests.endless import endless_encoder, endless_transformation
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, post_images, register_version, search, start_upgrade, state_of
from tests.served import wait_for
from workers.app import WorkerParts, make_worker_parts
from workers.upgrading import advance_upgrade


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"network_seconds": 4.0})


def test_a_network_that_never_ends_is_refused_with_a_sentence(client: TestClient) -> None:
    register_version(client, "v1")
    register_version(client, "v2")

    version = post_version(client, "endless", endless_encoder(6, rows=None))
    transformation = post_transformation(client, "v1", "v2", endless_transformation(6, 8, rows=None))

    check_problem(version, 422, "took longer than 4 s, and was stopped")
    check_problem(transformation, 422, "took longer than 4 s, and was stopped")


def test_many_of_them_at_once_take_no_others_place(client: TestClient) -> None:
    register_version(client, "v1")
    endless = endless_encoder(6, rows=None)

    with ThreadPoolExecutor(16) as threads:
        posted = [threads.submit(post_version, client, f"e{number}", endless) for number in range(16)]
        while not all(answer.done() for answer in posted):
            assert client.get("/v1/model-versions").status_code == 200

    statuses = sorted(answer.result().status_code for answer in posted)
    assert set(statuses) == {422, 429}
    assert len(client.get("/v1/model-versions").json()["items"]) == 1


def test_images_that_it_never_ends_on_are_refused_and_others_are_stored(client: TestClient) -> None:
    assert post_version(client, "v9", endless_encoder(6, rows=3)).status_code == 201
    create_gallery(client, version="v9")

    files = [("files", (f"{seed}.png", image_bytes(seed))) for seed in range(3)]
    check_problem(client.post("/v1/galleries/g/images", files=files), 422, "took longer than 4 s, and was stopped")

    post_images(client, range(2))
    assert search(client, 1, k=1)["neighbors"][0]["id"] == "image-1.png"


def test_an_upgrade_whose_h_never_ends_fails_with_a_sentence(client: TestClient, worker: WorkerParts) -> None:
    for version in ("v1", "v2"):
        register_version(client, version)
    assert post_transformation(client, "v1", "v2", endless_transformation(6, 8, rows=4)).status_code == 201
    create_gallery(client)
    post_images(client, range(6))
    dry_run = client.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True})
    upgrade_id = start_upgrade(client, "v2")

    for _ in range(3):
        advance_upgrade(worker, upgrade_id)

    check_problem(dry_run, 409, "h failed on 4 rows: The network took longer than 4 s, and was stopped")
    assert state_of(client, upgrade_id) == "failed"
    error = client.get(f"/v1/upgrades/{upgrade_id}").json()["error"]
    assert "h failed on 4 rows: The network took longer than 4 s, and was stopped" in error
    assert client.post(f"/v1/upgrades/{upgrade_id}/cancel").status_code == 200


@pytest.mark.parametrize(("action", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_an_upgrade_is_paused_and_cancelled_while_its_h_never_ends(
    settings: Settings, database_url: str, action: str, state: str
) -> None:
    settings = settings.model_copy(update={"network_seconds": 60.0})
    worker = make_worker_parts(settings, celery_application(settings))
    with TestClient(create_app(settings)) as client, ThreadPoolExecutor(1) as thread:
        for version in ("v1", "v2"):
            register_version(client, version)
        assert post_transformation(client, "v1", "v2", endless_transformation(6, 8, rows=4)).status_code == 201
        create_gallery(client)
        post_images(client, range(6))
        upgrade_id = start_upgrade(client, "v2")

        working = thread.submit(advance_upgrade, worker, upgrade_id)
        wait_for(lambda: batches_of(worker, upgrade_id) == [("claimed", 1)])
        answer = client.post(f"/v1/upgrades/{upgrade_id}/{action}")
        working.result(timeout=60)

        assert (answer.status_code, answer.json()["state"], answer.json()["error"]) == (200, state, None)
        assert batches_of(worker, upgrade_id) == [("pending", 0)]
        assert client.post(f"/v1/upgrades/{upgrade_id}/cancel").json()["state"] == "cancelled"
    worker.database.engine.dispose()


def batches_of(worker: WorkerParts, upgrade_id: int) -> list[tuple[str, int]]:
    """Return the state of each batch, and how often it was tried."""
    query = select(UpgradeBatch.state, UpgradeBatch.attempts).where(UpgradeBatch.upgrade_id == upgrade_id)
    with worker.database.session_scope() as session:
        return [(state.value, attempts) for state, attempts in session.execute(query.order_by(UpgradeBatch.id))]
