"""The supervisor of `serve`: what it refuses, what it starts again, and that it leaves no process behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import settings_of_serve
from tests.served import Served, free_port, is_running, wait_for


@pytest.fixture(scope="module")
def supervised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with settings_of_serve(request) as settings:
        running = Served(tmp_path_factory.mktemp("supervised") / "data", **settings)
        yield running
        running.stop()


@pytest.fixture
def served(supervised: Served) -> Served:
    """One `serve` for all tests here, started again after those that stop it."""
    if not supervised.is_started:
        supervised.start()
    return supervised


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_leaves_no_process_behind(
    served: Served, serve_settings: dict[str, str], number: signal.Signals
) -> None:
    children = served.children()
    assert len(children) == (2 if serve_settings else 4)

    os.kill(served.pid, number)
    code = served.stop()

    assert code == 0
    assert [pid for pid in children if is_running(pid)] == []


def test_a_killed_supervisor_leaves_no_process_behind(served: Served) -> None:
    children = served.children()

    served.kill()

    wait_for(lambda: not any(is_running(pid) for pid in children), seconds=15)
    served.start()
    assert served.client.get("/readyz").status_code == 200


def test_a_second_serve_on_the_same_folder_is_refused_with_a_sentence(
    served: Served, serve_settings: dict[str, str]
) -> None:
    if serve_settings:
        pytest.skip("only embedded servers belong to one folder; real ones are shared by as many as like")
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "1", "--data", str(served.data)]
    command[5] = str(Served(served.data).port)

    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert second.returncode == 1
    assert "Another process runs the servers of" in second.stderr
    assert served.client.get("/readyz").status_code == 200


def test_a_taken_port_is_refused_with_a_sentence(served: Served) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(served.port), "--data", "/nonexistent"]

    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert second.returncode == 1
    assert f"Cannot listen on 127.0.0.1, port {served.port}" in second.stderr


def is_ready(served: Served) -> bool:
    try:
        return served.client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("word", ["service.cli api", "workers.app"])
def test_a_child_that_dies_is_started_again(served: Served, word: str) -> None:
    (killed,), said_before = served.children(word), len(served.log.read_text())

    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: served.children(word) not in ([], [killed]))
    wait_for(lambda: is_ready(served))

    assert is_running(served.pid)
    assert "serve.child_died" in served.log.read_text()[said_before:]


def test_a_server_that_dies_is_started_again_with_the_other(served: Served, serve_settings: dict[str, str]) -> None:
    if serve_settings:
        pytest.skip("real servers are not the supervisor's children")
    (valkey,), (postgres,) = served.children("valkey-server"), served.children("bin/postgres")
    said_before = len(served.log.read_text())

    os.kill(valkey, signal.SIGKILL)
    wait_for(lambda: served.children("valkey-server") not in ([], [valkey]))
    wait_for(lambda: is_ready(served))

    assert served.children("bin/postgres") not in ([], [postgres])
    assert "serve.server_died" in served.log.read_text()[said_before:]


def test_an_api_that_cannot_start_ends_serve_with_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    nowhere = f"postgresql://127.0.0.1:{free_port()}/nothing"
    variables = {"GALLERY_DATABASE_URL": nowhere, "GALLERY_BROKER_URL": "memory://"}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(free_port()), "--data", str(tmp_path)]

    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert ended.stderr.endswith("gallery-upgrade: The API did not start; its reason is above.\n")
    assert "OperationalError" in ended.stderr
    assert list(tmp_path.iterdir()) == []
