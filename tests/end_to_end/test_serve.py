"""`serve` as a user runs it: start, use, stop, start again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
    state_of,
)
from tests.served import Served, is_running, wait_for


def test_an_upgrade_runs_in_the_worker_and_survives_a_restart(served: Served) -> None:
    client = served.client
    for version in ("v1", "v2"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    post_images(client, range(20))

    upgrade_id = start_upgrade(client, "v2")
    wait_for(lambda: state_of(client, upgrade_id) == "ready")
    live = client.post(f"/v1/upgrades/{upgrade_id}/cutover")
    answer = search(client, 3)
    served.stop()
    served.start()
    again = search(client, 3)

    assert live.json()["state"] == "live"
    assert answer["model_version"] == "v2"
    assert again == answer


def test_the_worker_logs_under_the_id_of_the_request_that_asked_for_the_work(
    tmp_path: Path, serve_settings: dict[str, str]
) -> None:
    served = Served(tmp_path / "data", sweep_every_seconds="600", **serve_settings)  # no sweep asks for a slice besides
    served.start()
    create_upgradable_gallery(served.client)
    post_images(served.client, range(20))
    body = {"to_version": "v2"}

    answer = served.client.post("/v1/galleries/g/upgrades", json=body, headers={"X-Request-ID": "asked-here"})
    wait_for(lambda: state_of(served.client, answer.json()["id"]) == "ready")
    served.stop()

    lines = (served.data / "worker.log").read_text().splitlines()
    of_this_upgrade = [line for line in lines if "upgrade.batch_recorded" in line or "upgrade.state_changed" in line]
    assert len(of_this_upgrade) > 1
    assert [line for line in of_this_upgrade if not line.endswith("request_id=asked-here")] == []


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
    assert f"Cannot listen on 127.0.0.1:{served.port}" in second.stderr
