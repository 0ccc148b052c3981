"""Fixtures that several folders share: an empty gallery, and what trainings need."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.scenario import create_gallery, register_version


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 is empty."""
    register_version(client, "v1")
    create_gallery(client)
    return client


@pytest.fixture
def versions(client: TestClient) -> TestClient:
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    return client


@pytest.fixture
def datasets(settings: Settings, tmp_path: Path) -> Path:
    """The operator's folder for data sets; the service and the worker are told."""
    settings.datasets = tmp_path / "datasets"
    settings.datasets.mkdir()
    return settings.datasets
