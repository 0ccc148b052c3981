"""What one worker process holds, and how its threads share the cores."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from celery import Celery

from service.queue import ADVANCE_UPGRADE, celery_application
from service.settings import Settings
from workers.app import make_worker_parts, share_cores


@pytest.fixture(params=[(16, "cpu", 4, 8), (16, "cpu", 1, 16), (3, "cpu", 8, 1), (16, "cuda", 4, 16)])
def cores(request: pytest.FixtureRequest) -> Iterator[tuple[Settings, int]]:
    """Settings in a process of so many threads, and how many each computation then has."""
    threads, device, batches_at_once, share = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield Settings(device=device, batches_at_once=batches_at_once), share
    torch.set_num_threads(before)


@pytest.fixture
def application() -> Celery:
    return celery_application(Settings(broker_url="memory://"))


def test_threads_that_compute_at_a_time_share_the_cores(cores: tuple[Settings, int]) -> None:
    settings, share = cores

    share_cores(settings)

    assert torch.get_num_threads() == share


def test_a_worker_without_a_database_says_which_variable_is_missing(application: Celery, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GALLERY_DATABASE_URL"):
        make_worker_parts(Settings(data=tmp_path), application)


def test_what_one_worker_holds_is_no_other_workers(application: Celery, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, database_url="postgresql://nowhere/x")
    one, other = (make_worker_parts(settings, application) for _ in range(2))

    one.working.set()
    one.throttle.worked(1, 3.0)

    assert not other.working.is_set()
    assert (one.throttle.rest_seconds(1, 0.5) > 0, other.throttle.rest_seconds(1, 0.5)) == (True, 0)


def test_its_messages_go_to_the_broker_of_its_application(application: Celery, tmp_path: Path) -> None:
    parts = make_worker_parts(Settings(data=tmp_path, database_url="postgresql://nowhere/x"), application)

    parts.database.queue.send(ADVANCE_UPGRADE, 4)

    with application.connection_for_read() as connection, connection.SimpleQueue("gallery_upgrade") as queue:
        assert queue.get(timeout=5).payload[0] == [4]
