"""The first ten minutes over HTTP: uploads that are killed, and an upgrade that is waited for, judged and cut over."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from gallery_upgrade import Client
from gallery_upgrade.errors import Failed
from tests.integration.client.conftest import working
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery
from tests.served import wait_for
from workers.app import WorkerParts

IMAGES = 120
KILLS = 3


def run(url: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "gallery_upgrade.cli", *arguments, "--json", "--url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any]]:
    printed, told = process.communicate()
    assert printed, told
    return process.returncode, json.loads(printed)


@pytest.mark.chaos
def test_whenever_an_upload_is_killed_the_gallery_has_what_the_folder_has_in_the_end(
    client: TestClient, url: str, tmp_path: Path
) -> None:
    folder, ledger = tmp_path / "pictures", tmp_path / "ledger.sqlite"
    folder.mkdir()
    for seed in range(IMAGES):
        (folder / f"{seed}.png").write_bytes(image_bytes(seed))
    create_upgradable_gallery(client)
    upload = ["upload", "g", str(folder), "--threads", "2", "--ledger", str(ledger), "--delete-missing"]

    draw = random.Random(23)
    for kill in range(KILLS):
        process = run(url, *upload)
        wait_for(lambda process=process: ledger.exists() or process.poll() is not None)  # type: ignore[misc]
        time.sleep(draw.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (folder / f"{kill}.png").write_bytes(image_bytes(1000 + kill))
        (folder / f"{IMAGES - 1 - kill}.png").unlink()
    code, uploaded = outcome(run(url, *upload))
    again = outcome(run(url, *upload))

    here = sorted(path.name for path in folder.iterdir())
    assert code == 0, uploaded
    assert again == (0, {**dict.fromkeys(uploaded, 0), "unchanged": len(here), "reasons": {}})
    with Client(url) as service:
        gallery = service.galleries.get("g")
        assert sorted(item.id for item in gallery.items()) == here
        for name in ("0.png", "2.png", "60.png"):
            (nearest,) = gallery.search(folder / name, k=1)
            assert (nearest.id, round(nearest.distance, 2)) == (name, 0.0)


def test_an_upgrade_is_waited_for_judged_cut_over_and_rolled_back(
    client: TestClient, worker: WorkerParts, url: str, tmp_path: Path
) -> None:
    create_upgradable_gallery(client)
    for seed in range(30):
        (tmp_path / f"{seed}.png").write_bytes(image_bytes(seed))
    shown: list[str] = []
    with Client(url) as service:
        gallery = service.galleries.get("g")
        gallery.upload({f"{seed}.png": tmp_path / f"{seed}.png" for seed in range(30)})
        plan = gallery.plan_upgrade("v2")

        upgrade = gallery.upgrade("v2")
        with working(worker, upgrade.id):
            upgrade.wait(progress=shown.extend, timeout_seconds=60)
            assert (upgrade.state, upgrade.report().verdict) == ("ready", "not_judged")
            watched = run(url, "upgrade", "watch", str(upgrade.id))
            assert outcome(watched)[0] == 4
            given = upgrade.give_references(lambda item_id: tmp_path / item_id, upgrade.wanted_references(20))
            report = upgrade.evaluate(timeout_seconds=60)
            live = upgrade.cut_over(override="the networks are random").wait(until="ready").state
            nearest = gallery.search(tmp_path / "0.png", k=1)
            upgrade.roll_back()

        assert plan.items == 30
        assert "transforming" in shown
        assert [result.status for result in given] == ["accepted"] * 20
        assert (report.evidence, report.report) == (20, 2)
        assert (live, nearest.model_version) == ("live", "v2")
        assert upgrade.state == "rolled_back"
        with pytest.raises(Failed, match="is rolled_back"):
            upgrade.wait()
