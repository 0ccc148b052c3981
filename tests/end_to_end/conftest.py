"""A real `gallery-upgrade serve`: supervisor, PostgreSQL, Valkey, API and worker as processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import Served


@pytest.fixture
def served(tmp_path: Path, serve_settings: dict[str, str]) -> Iterator[Served]:
    running = Served(tmp_path / "data", **serve_settings)
    running.start()
    yield running
    running.stop()
