"""`serve` on a disk of its own that fills: nothing is stored, queries go on, nothing dies for good, and all goes on."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.served import Served, is_running, wait_for

MIB = 2**20
DISK, RESERVE = 700 * MIB, 200 * MIB


@pytest.fixture
def disk(tmp_path: Path, serve_settings: dict[str, str]) -> Iterator[Path]:
    """A small disk in memory; what `serve` prints is written beside it."""
    if serve_settings:
        pytest.skip("only embedded servers are on the disk of the data folder")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk of its own needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def served(disk: Path) -> Iterator[Served]:
    running = Served(disk, disk_reserve_bytes=str(RESERVE), sweep_every_seconds="0.5")
    running.start()
    create_upgradable_gallery(running.client)
    post_images(running.client, range(8))
    yield running
    running.stop()


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes free; return the file that takes the others."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return ballast


def test_below_the_reserve_writers_and_upgrades_rest_and_then_go_on(served: Served, disk: Path) -> None:
    client = served.client
    upgrade_id = start_upgrade(client, "v2", speed=0)
    ballast = fill(disk, leave=RESERVE // 2)

    client.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1})
    wait_for(lambda: client.get(f"/v1/upgrades/{upgrade_id}").json()["error"] is not None)
    refused = client.post("/v1/galleries/g/images", files={"files": ("9.png", image_bytes(9))})
    found, ready = search(client, 3), client.get("/readyz").json()
    ballast.unlink()
    wait_for(lambda: state_of(client, upgrade_id) == "ready")
    post_images(client, [9])

    assert (refused.status_code, ready["status"]) == (507, "no_room")
    assert found["neighbors"][0]["id"] == "image-3.png"
    assert client.get(f"/v1/upgrades/{upgrade_id}").json()["error"] is None


def test_a_server_that_dies_on_a_full_disk_is_tried_until_there_is_room(served: Served, disk: Path) -> None:
    before = search(served.client, 3)
    ballast = fill(disk, leave=0)

    (postgres,) = served.children("postgres")
    os.kill(postgres, signal.SIGKILL)
    wait_for(lambda: "is tried every" in served.log.read_text(), seconds=120)
    assert is_running(served.pid)
    ballast.unlink()
    wait_for(lambda: answers(served), seconds=120)

    assert search(served.client, 3) == before
    post_images(served.client, [9])


def answers(served: Served) -> bool:
    try:
        return served.client.get("/v1/galleries/g/items").status_code == 200
    except httpx.TransportError:
        return False
