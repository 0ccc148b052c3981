"""Ingests by reference whose workers die: another one goes on, every image is stored once, every outcome is told."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.app import create_app
from service.db import Database
from service.domain.gallery.images import ImageResult
from service.domain.ingest.batches import IngestNotRunning, begin_ingest, claim_batch, lease_kept, record_batch
from service.embedded.processes import spawn
from service.embedded.supervisor import worker_command
from service.queue import celery_application
from service.settings import Settings
from service.tables import IngestReference, Item
from tests.chaos import dying
from tests.conftest import Servers, fresh_database, small_settings
from tests.networks import image_bytes
from tests.scenario import create_gallery, register_version
from tests.served import wait_for
from workers.app import make_worker_parts
from workers.ingesting import advance_ingest

# Where a worker dies, and how many batches are done by then.
INGEST_POINTS = {"ingest.claimed": 0, "ingest.recorded": 0, "ingest.committed": 1}
BATCH_IMAGES = 4
IMAGES = 26
BROKEN = (3, 10, 25)
DEAD = 137
pytestmark = pytest.mark.xdist_group("deaths")


@pytest.fixture(scope="module")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(b"broken" if number in BROKEN else image_bytes(number % 5))
    own = {
        "images": folder.as_uri(),
        "encode_batch_items": BATCH_IMAGES,
        "lease_seconds": 0.5,
        "sweep_every_seconds": 0.2,
    }
    with fresh_database(servers) as url:
        yield small_settings(servers, url, tmp_path_factory.mktemp("data")).model_copy(update=own)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        register_version(client, "v1")
        yield client


@pytest.fixture
def job_id(client: TestClient, settings: Settings, request: pytest.FixtureRequest) -> Iterator[int]:
    """An ingest of images, of which three are broken, into a gallery of its own."""
    create_gallery(client)
    listed = [{"id": str(number), "image_uri": f"{settings.images}/{number}.png"} for number in range(IMAGES)]
    yield client.post("/v1/galleries/g/images/references", json=listed).json()["id"]
    client.delete("/v1/galleries/g")


def job(client: TestClient, job_id: int) -> dict[str, Any]:
    view: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return view


def check_complete(client: TestClient, database: Database, job_id: int) -> None:
    """Every image was stored by one write, or rejected with its reason, and nothing is left of the list."""
    ended = job(client, job_id)
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    assert ended["result"] == {"created": IMAGES - len(BROKEN), "replaced": 0, "rejected": len(BROKEN)}
    rejected = client.get(f"/v1/jobs/{job_id}/rejected").json()["items"]
    assert [row["id"] for row in rejected] == [str(number) for number in BROKEN]
    with database.session_scope() as session:
        revisions = list(session.scalars(select(Item.revision).order_by(Item.revision)))
        unread = select(IngestReference).where(IngestReference.job_id == job_id, IngestReference.reason.is_(None))
        left = session.scalars(unread).all()
    assert revisions == list(range(1, IMAGES - len(BROKEN) + 1))
    assert left == []


@pytest.mark.parametrize(("point", "batches"), INGEST_POINTS.items(), ids=INGEST_POINTS)
def test_after_a_death_between_any_two_steps_another_worker_ends_the_job(
    client: TestClient, settings: Settings, job_id: int, point: str, batches: int
) -> None:
    armed = settings.model_copy(update={"crash_at": point})

    assert dying.exit_code_of(dying.ingest, armed, job_id) == DEAD

    assert job(client, job_id)["progress"]["ingesting"]["done"] == batches * BATCH_IMAGES
    with worker(settings) as parts:

        def is_ended() -> bool:
            advance_ingest(parts, job_id)
            return job(client, job_id)["finished_at"] is not None

        wait_for(is_ended, seconds=60)
        check_complete(client, parts.database, job_id)


@contextmanager
def worker(settings: Settings) -> Iterator[Any]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


def test_who_lost_a_claim_or_whose_job_rests_writes_nothing(
    client: TestClient, settings: Settings, job_id: int
) -> None:
    with worker(settings) as parts:
        with parts.database.session_scope() as session:
            begin_ingest(session, job_id)
        lost = claim_batch(parts.database, job_id, lease_seconds=0.0)
        taken = claim_batch(parts.database, job_id, lease_seconds=30.0)
        assert lost is not None
        assert taken is not None
        assert (taken.row.id, taken.attempts) == (lost.row.id, 2)
        results = [ImageResult(item.external_id, "rejected", "a reason") for item in lost.items]

        with pytest.raises(IngestNotRunning), parts.database.session_scope() as session:
            record_batch(session, lost, results)
        client.post(f"/v1/jobs/{job_id}/pause")
        with pytest.raises(IngestNotRunning), parts.database.session_scope() as session:
            record_batch(session, taken, results)

    assert job(client, job_id)["progress"]["ingesting"]["done"] == 0


def test_a_batch_that_takes_longer_than_its_lease_stays_its_workers(
    client: TestClient, settings: Settings, job_id: int
) -> None:
    with worker(settings) as parts:
        claim = claim_batch(parts.database, job_id, lease_seconds=0.3)
        assert claim is not None

        with lease_kept(parts.database, claim, lease_seconds=0.3):
            time.sleep(1.0)
            other = claim_batch(parts.database, job_id, lease_seconds=30.0)

    assert other is not None
    assert other.row.id != claim.row.id


def test_a_job_whose_worker_process_is_killed_in_the_middle_is_ended_by_the_next_one(
    client: TestClient, settings: Settings, job_id: int, tmp_path: Path
) -> None:
    client.patch(f"/v1/jobs/{job_id}", json={"speed": 0.05})  # so that it is seen between two batches
    environment = {**os.environ, **settings.environment()}
    first = spawn(worker_command(), log_path=tmp_path / "first.log", environment=environment)
    try:
        wait_for(lambda: 0 < job(client, job_id)["progress"]["ingesting"]["done"] < IMAGES, seconds=180)
    finally:
        first.kill()
        first.wait()
    assert job(client, job_id)["state"] == "running"
    client.patch(f"/v1/jobs/{job_id}", json={"speed": 1})

    second = spawn(worker_command(), log_path=tmp_path / "second.log", environment=environment)
    try:
        wait_for(lambda: job(client, job_id)["state"] != "running", seconds=90)
    finally:
        second.terminate()
        second.wait(60)

    with worker(settings) as parts:
        check_complete(client, parts.database, job_id)
