"""A service and a worker whose one store is a fake."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import service.app
from service.queue import celery_application
from service.settings import Settings
from tests.external_stores import open_fake
from tests.external_upgrades import make_fake_parts, named
from workers.app import WorkerParts, make_worker_parts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def settings(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"stores": named(path)})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings, make_fake_parts), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    yield parts
    parts.database.engine.dispose()
