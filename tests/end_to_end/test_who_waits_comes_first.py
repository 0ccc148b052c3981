"""One real worker, trainings that would take hours, and somebody who waits for an upgrade."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.embedded.processes import spawn, stop
from service.embedded.supervisor import worker_command
from service.settings import Settings
from tests.paired_vectors import paired_columns, parquet
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade, state_of
from tests.served import wait_for
from tests.trainings import begin, job_of

LONG = {"epochs": 1_000, "inner_dim": 1_024, "batch": 256, "recipe": "paper"}


@pytest.fixture
def with_worker(client: TestClient, settings: Settings, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a service that has one worker process; `g` can be upgraded to v2."""
    create_upgradable_gallery(client)
    settings.data.mkdir(exist_ok=True)
    environment = {**os.environ, **settings.environment(), "GALLERY_TASK_SLICE_SECONDS": "600"}
    process = spawn(worker_command(), log_path=tmp_path / "worker.log", environment=environment)
    yield client
    stop(process, signal.SIGKILL, 30)


def test_an_upgrade_overtakes_trainings_that_are_queued_and_one_that_is_under_way(with_worker: TestClient) -> None:
    post_images(with_worker, range(20))
    pairs = parquet(paired_columns(4_000))
    trainings = [begin(with_worker, pairs, options=LONG) for _ in range(3)]
    wait_for(lambda: job_of(with_worker, trainings[0])["state"] == "running", seconds=90)
    estimate = with_worker.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True}).json()

    upgrade_id = start_upgrade(with_worker, "v2", cutover="manual")
    wait_for(lambda: state_of(with_worker, upgrade_id) == "ready", seconds=90)
    answer = with_worker.post(f"/v1/upgrades/{upgrade_id}/cutover")

    assert (answer.status_code, answer.json()["state"]) == (200, "live")
    assert {job_of(with_worker, training)["state"] for training in trainings} <= {"queued", "running"}
    assert estimate["ahead"] == {"upgrades": [], "items": 0, "trainings": 3, "index_builds": 0}
    assert estimate["seconds_ahead"] == 2.0
