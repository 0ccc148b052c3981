"""The course of a disk that fills, with a writer, somebody who searches and an upgrade beside it: a line whenever
anything that they see changes, as Markdown.

    python -m tests.full_disk

`serve` has a disk of its own, of 700 MiB in memory, which takes the right to mount one. After some seconds it is filled
below the reserve, then to the last byte with PostgreSQL killed, and then there is room again.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import typer

from benchmarks.setting import machine
from tests.end_to_end.embedded.test_full_disk import DISK, RESERVE, fill
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, import_vectors, post_images, start_upgrade
from tests.served import Served

_LOOK_EVERY_SECONDS = 0.2
_STEP_SECONDS = 8.0
_ITEMS = 40_000


class Course:
    """What is seen by name, and since when: printed as it changes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._seen: dict[str, str] = {}

    def say(self, what: str, said: str) -> None:
        with self._lock:
            if self._seen.get(what) != said:
                self._seen[what] = said
                print(f"| {time.monotonic() - self._began:.1f} | {what} | {said} |", flush=True)


def run() -> None:
    """Print the course."""
    with tempfile.TemporaryDirectory(prefix="full-disk-") as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
        try:
            _fill_and_free(disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    print(f"\n{machine()}")


def _fill_and_free(disk: Path) -> None:
    served = Served(disk, disk_reserve_bytes=str(RESERVE), sweep_every_seconds="0.5", batch_items="500")
    served.start()
    create_upgradable_gallery(served.client)
    post_images(served.client, range(8))
    import_vectors(served.client, [f"vector {number}" for number in range(_ITEMS)])
    upgrade_id = start_upgrade(served.client, "v2", speed=0.02)
    print("| second | what | is |\n|---|---|---|")
    course, ended = Course(), threading.Event()
    looks = {
        "a write": lambda client: _status(
            client.post("/v1/galleries/g/images", files={"files": ("9.png", image_bytes(9))})
        ),
        "a search": lambda client: _status(
            client.post("/v1/galleries/g/search", files={"file": ("q.png", image_bytes(3))})
        ),
        "/readyz": _readiness,
        "the upgrade": lambda client: _state(client, upgrade_id),
    }
    threads = [threading.Thread(target=_look, args=(served, course, ended, *pair)) for pair in looks.items()]
    for thread in threads:
        thread.start()
    try:
        _steps(served, disk, course)
        served.client.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1}, timeout=60)
        time.sleep(_STEP_SECONDS)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        served.stop()


def _steps(served: Served, disk: Path, course: Course) -> None:
    time.sleep(_STEP_SECONDS)
    ballast = fill(disk, leave=RESERVE // 2)
    course.say("the disk", f"{RESERVE // 2**21} MiB free, of a reserve of {RESERVE // 2**20}")
    time.sleep(_STEP_SECONDS)
    ballast.rename(disk / "below the reserve")
    more = fill(disk, leave=0)
    (postgres,) = served.children("postgres")
    os.kill(postgres, signal.SIGKILL)
    course.say("the disk", "full, and PostgreSQL is killed")
    time.sleep(2 * _STEP_SECONDS)
    (disk / "below the reserve").unlink()
    more.unlink()
    course.say("the disk", "has room")
    time.sleep(2 * _STEP_SECONDS)


def _look(
    served: Served, course: Course, ended: threading.Event, what: str, look: Callable[[httpx.Client], str]
) -> None:
    with httpx.Client(base_url=served.client.base_url, timeout=30) as client:
        while not ended.wait(_LOOK_EVERY_SECONDS):
            try:
                course.say(what, look(client))
            except httpx.TransportError as error:
                course.say(what, type(error).__name__)


def _status(answer: httpx.Response) -> str:
    return str(answer.status_code)


def _readiness(client: httpx.Client) -> str:
    answer = client.get("/readyz")
    return f"{answer.status_code} {answer.json().get('status')}"


def _state(client: httpx.Client, upgrade_id: int) -> str:
    answer = client.get(f"/v1/upgrades/{upgrade_id}")
    if not answer.is_success:
        return _status(answer)
    upgrade = answer.json()
    return f"{upgrade['state']}{': ' + upgrade['error'] if upgrade['error'] else ''}"


if __name__ == "__main__":
    typer.run(run)
