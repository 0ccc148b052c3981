"""Erasures whose workers die: another one goes on, and the proof counts all that was removed."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.queue import celery_application
from service.settings import Settings
from tests.chaos import dying
from tests.conftest import Servers, fresh_database, small_settings
from tests.erasures import ask_for_erasure, found_in, places_of
from tests.scenario import create_upgradable_gallery, import_vectors, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts, make_worker_parts
from workers.erasing import advance_an_erasure

ERASURE_POINTS = (
    "erasure.rows",
    "erasure.stragglers",
    "erasure.indexes",
    "erasure.images",
    "erasure.counted",
    "erasure.vacuumed",
)
DEAD = 137
pytestmark = pytest.mark.xdist_group("deaths")


@pytest.fixture(scope="module")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with fresh_database(servers) as url:
        yield small_settings(servers, url, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


@pytest.fixture(scope="module")
def client(settings: Settings, worker: WorkerParts) -> Iterator[TestClient]:
    """A gallery whose upgrade is ready, so that the next generation has an index file."""
    with TestClient(create_app(settings)) as client:
        create_upgradable_gallery(client)
        import_vectors(client, [f"item-{number}" for number in range(12)] + list(ERASURE_POINTS))
        run_until(worker, client, start_upgrade(client, "v2"), "ready")
        yield client


@pytest.mark.parametrize("point", ERASURE_POINTS)
def test_after_a_death_between_any_two_steps_another_worker_ends_the_erasure(
    client: TestClient, settings: Settings, worker: WorkerParts, point: str
) -> None:
    job_id = ask_for_erasure(client, gallery="g", ids=[point])
    armed = settings.model_copy(update={"crash_at": point})

    assert dying.exit_code_of(dying.erase, armed, job_id) == DEAD

    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
    while advance_an_erasure(worker, job_id):
        pass
    job = client.get(f"/v1/jobs/{job_id}").json()
    places = places_of(job)
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert places["items"] == places["embeddings_1"] == places["embeddings_2"] == (1, 1, 0)
    assert places["index of generation 2"] == (1, 1, 0)
    assert found_in(worker.database, settings.data, point.encode()) == set()
