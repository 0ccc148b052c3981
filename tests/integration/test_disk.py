"""With too little room on the disk nothing is stored and queries go on; work rests with a sentence, then goes on."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.networks import image_bytes
from tests.paired_vectors import paired_columns, parquet
from tests.problems import check_problem
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.trainings import begin, finish, job_of
from tests.working import run_until, with_settings
from workers.app import WorkerParts
from workers.training import advance_training
from workers.upgrading import advance_upgrade

NEVER_ENOUGH = 2**60
SENTENCE = "less than the reserve of"


@pytest.fixture
def upgradable(client: TestClient) -> TestClient:
    create_upgradable_gallery(client)
    post_images(client, range(4))
    return client


@pytest.fixture
def full(gallery: TestClient, settings: Settings) -> Iterator[TestClient]:
    """A process of the same gallery that finds the disk too full."""
    post_images(gallery, range(4))
    with TestClient(create_app(settings.model_copy(update={"disk_reserve_bytes": NEVER_ENOUGH}))) as client:
        yield client


def states(client: TestClient, upgrade_id: int) -> list[tuple[str, bool]]:
    """Return the states of an upgrade's events, and whether each speaks of the disk."""
    body = client.get(f"/v1/upgrades/{upgrade_id}/events").text
    blocks = [block for block in body.split("\n\n") if "event: state" in block]
    events = [json.loads(block.split("data: ")[1].splitlines()[0]) for block in blocks]
    return [(event["state"], SENTENCE in (event["error"] or "")) for event in events]


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/galleries/g/images", {"files": {"files": image_bytes(9)}}),
        ("/v1/galleries/g/embeddings", {"content": b"never read"}),
        ("/v1/galleries/g/query-sets", {"content": b"never read"}),
        ("/v1/galleries", {"json": {"name": "h", "model_version": "v1"}}),
        ("/v1/galleries/g/upgrades", {"json": {"to_version": "v2"}}),
        ("/v1/model-versions", {"content": b"never read"}),
        ("/v1/transformations", {"content": b"never read"}),
        ("/v1/transformations/train", {"content": b"never read"}),
        ("/v1/upgrades/1/references", {"content": b"never read"}),
    ],
)
def test_what_would_be_stored_is_507(full: TestClient, path: str, request_: dict[str, Any]) -> None:
    check_problem(full.post(path, **request_), 507, SENTENCE)


def test_queries_and_deletions_go_on_and_the_process_says_that_nothing_is_stored(full: TestClient) -> None:
    found = search(full, 0, k=1)["neighbors"]
    ready = full.get("/readyz")
    deleted = full.delete("/v1/galleries/g/items/image-0.png")

    assert [neighbor["id"] for neighbor in found] == ["image-0.png"]
    assert (ready.status_code, ready.json()["status"]) == (200, "no_room")
    assert SENTENCE in ready.json()["detail"]
    assert deleted.status_code == 204


def test_an_upgrade_rests_with_a_sentence_and_goes_on_by_itself(upgradable: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(upgradable, "v2", cutover="auto")
    without_room = with_settings(worker, disk_reserve_bytes=NEVER_ENOUGH)

    for _ in range(3):
        assert not advance_upgrade(without_room, upgrade_id)
    resting = upgradable.get(f"/v1/upgrades/{upgrade_id}").json()
    run_until(worker, upgradable, upgrade_id, "live")

    assert resting["state"] == "planned"
    assert SENTENCE in resting["error"]
    assert upgradable.get(f"/v1/upgrades/{upgrade_id}").json()["error"] is None
    upgradable.post(f"/v1/upgrades/{upgrade_id}/finalize")
    assert states(upgradable, upgrade_id)[:4] == [
        ("planned", False),
        ("planned", True),
        ("planned", False),
        ("transforming", False),
    ]


def test_an_upgrade_that_rests_can_be_paused_and_cancelled(upgradable: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(upgradable, "v2")
    advance_upgrade(with_settings(worker, disk_reserve_bytes=NEVER_ENOUGH), upgrade_id)

    assert upgradable.post(f"/v1/upgrades/{upgrade_id}/pause").status_code == 200
    assert upgradable.post(f"/v1/upgrades/{upgrade_id}/cancel").status_code == 200
    assert state_of(upgradable, upgrade_id) == "cancelled"


def test_a_training_rests_with_a_sentence_and_goes_on_by_itself(versions: TestClient, worker: WorkerParts) -> None:
    job_id = begin(versions, parquet(paired_columns()))

    assert not advance_training(with_settings(worker, disk_reserve_bytes=NEVER_ENOUGH), job_id)
    resting = job_of(versions, job_id)
    finish(versions, worker, job_id)

    assert resting["state"] == "queued"
    assert SENTENCE in resting["error"]
    assert job_of(versions, job_id)["error"] is None
