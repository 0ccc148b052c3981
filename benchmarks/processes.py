"""An API and worker processes on a benchmark's servers, as `gallery-upgrade serve` starts them, and their memory."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from models.preprocessing import Preprocessing
from service.domain.upgrade.upgrades import events_of
from service.domain.upgrade_state import State
from service.embedded.processes import spawn
from service.settings import Settings
from workers.app import WorkerParts

if TYPE_CHECKING:
    import subprocess

_START_SECONDS = 300.0
_LOOK_EVERY_SECONDS = 0.2
_PROGRAM = [sys.executable, "-m", "service.cli"]


@dataclass(frozen=True)
class Api:
    """An API process and a client of it; `start_seconds` from its start until it was ready."""

    client: httpx.Client
    pid: int
    start_seconds: float


@contextmanager
def api_process(parts: WorkerParts, port: int, **own_settings: Any) -> Iterator[Api]:
    """An API process that is ready; its settings are the worker's but for its own."""
    began = time.monotonic()
    settings = parts.settings.model_copy(update=own_settings)
    api = _spawn(settings, ["api", "--port", str(port)], f"api-{port}.log")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            _wait_until(lambda: _is_ready(client), parts.settings.data)
            yield Api(client, api.pid, time.monotonic() - began)
    finally:
        _end([api])


@contextmanager
def worker_processes(parts: WorkerParts, count: int) -> Iterator[list[int]]:
    """Worker processes that wait for work, by their pids."""
    names = [f"worker-{number}.log" for number in range(count)]
    logs = [parts.settings.data / name for name in names]
    for log in logs:
        log.unlink(missing_ok=True)
    workers = [_spawn(parts.settings, ["worker"], name) for name in names]
    try:
        _wait_until(lambda: all(" ready." in log.read_text() for log in logs), parts.settings.data)
        yield [worker.pid for worker in workers]
    finally:
        _end(workers)


def register_upgradable(
    client: httpx.Client, encoder: bytes, networks: Mapping[str, bytes], preprocessing: Preprocessing, dim: int
) -> None:
    """Register v1 and v2 of `dim` dimensions each for φ and ψ, which are one network, and `networks` h and g."""
    spec = {"embedding_dim": dim, "side_information_dim": dim, "preprocessing": preprocessing.to_json()}
    for version in ("v1", "v2"):
        files = {"embedding_model": encoder, "side_information_model": encoder}
        form = {"name": version, "spec": json.dumps(spec)}
        client.post("/v1/model-versions", data=form, files=files).raise_for_status()
    form = {"from_version": "v1", "to_version": "v2"}
    client.post("/v1/transformations", data=form, files=networks).raise_for_status()


def upgrade_until_ready(client: httpx.Client, gallery: str, to_version: str, speed: float = 1.0) -> dict[str, Any]:
    """Start an upgrade, wait until it is ready, and return it."""
    plan = {"to_version": to_version, "cutover": "manual", "speed": speed}
    upgrade: dict[str, Any] = client.post(f"/v1/galleries/{gallery}/upgrades", json=plan).raise_for_status().json()
    while upgrade["state"] != State.READY:
        if upgrade["state"] == State.FAILED:
            raise RuntimeError(upgrade["error"])
        time.sleep(_LOOK_EVERY_SECONDS)
        upgrade = client.get(f"/v1/upgrades/{upgrade['id']}").raise_for_status().json()
    return upgrade


def state_times(parts: WorkerParts, upgrade_id: int) -> dict[str, float]:
    """Return when an upgrade came to each state, in seconds since 1970."""
    with parts.database.session_scope() as session:
        return {event.state: event.at.timestamp() for event in events_of(session, upgrade_id)}


@dataclass(frozen=True)
class MemorySample:
    """Resident memory of the largest of the processes of one name; `at` in seconds since 1970."""

    at: float
    name: str
    resident_bytes: int


class MemoryTrace:
    """Samples the resident memory of some processes until it is stopped."""

    def __init__(self, processes: Mapping[str, list[int]], every_seconds: float) -> None:
        self.samples: list[MemorySample] = []
        self._processes = processes
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryTrace":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()

    def peak(self, name: str, start: float, end: float) -> int:
        """Return the most bytes between two times."""
        return max((s.resident_bytes for s in self.samples if s.name == name and start <= s.at < end), default=0)

    def _watch(self) -> None:
        while not self._stopping.wait(self._every_seconds):
            for name, pids in self._processes.items():
                self.samples.append(MemorySample(time.time(), name, max(map(_resident_bytes, pids))))


def _spawn(settings: Settings, arguments: list[str], log_name: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **settings.environment()}
    return spawn([*_PROGRAM, *arguments], log_path=settings.data / log_name, environment=environment)


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _wait_until(reached: Callable[[], bool], folder: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while not reached():
        if time.monotonic() > ends:
            raise RuntimeError(f"a process did not start: {[log.read_text()[-2000:] for log in folder.glob('*.log')]}")
        time.sleep(0.1)


def processor_ms(pid: int) -> float:
    """Return how long the threads of a process have run."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e6


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
