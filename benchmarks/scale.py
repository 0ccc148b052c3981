"""Whole upgrades by worker processes, by the size of the gallery and the number of workers: seconds, rows/s, memory of
worker and API while rows are transformed and while the index is built, and database bytes per item.

    python -m benchmarks.scale --items 10000 --items 100000 --items 1000000
    python -m benchmarks.scale --items 200000 --workers 1 --workers 2 --workers 4

The index is exact at every size, so that the table shows the moving of rows and not the building of a graph.
"""

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.setting import fill_gallery, machine, register_versions, worker_with_servers
from service.domain.upgrade_state import State
from service.domain.upgrades import events_after
from service.embedded.processes import spawn
from service.tables import embeddings_table
from workers.app import WorkerParts

_PORT = 18_517
_SAMPLE_SECONDS = 0.2
_START_SECONDS = 300.0
_MIB = 2**20


class _Memory:
    """The largest resident memory of some processes, in each state of the upgrade; in bytes, of the largest one."""

    def __init__(self, processes: dict[str, list[int]]) -> None:
        self._processes = processes
        self._peaks: dict[tuple[str, str], int] = defaultdict(int)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.state = "idle"
        self._thread.start()

    def peak(self, name: str, state: str) -> int:
        return self._peaks[name, state]

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(_SAMPLE_SECONDS):
            for name, pids in self._processes.items():
                key = (name, self.state)
                self._peaks[key] = max(self._peaks[key], *map(_resident_bytes, pids))


def run(
    items: Annotated[list[int] | None, typer.Option(help="Sizes of the gallery.")] = None,
    workers: Annotated[list[int] | None, typer.Option(help="Numbers of worker processes.")] = None,
    dim: Annotated[int, typer.Option(help="Of embedding and side-information, old and new.")] = 128,
) -> None:
    """Print the table, a row as soon as it is known."""
    table = Table(title=f"Upgrades of {dim} + {dim} float16")
    for column in (
        "items",
        "workers",
        "transforming s",
        "items/s",
        "indexing s",
        "worker idle MiB",
        "+ transforming",
        "+ indexing",
        "API ready s",
        "API idle MiB",
        "API largest",
        "generation bytes/item",
        "item bytes/item",
    ):
        table.add_column(column)
    console = Console(width=170)
    with worker_with_servers() as parts:
        register_versions(parts, dim)
        for size in items or [10_000, 100_000, 1_000_000]:
            for count in workers or [1]:
                row = _measure(parts, size, count, dim)
                table.add_row(*row)
                console.print("\t".join(row))
    console.print(table)
    console.print(machine())


def _measure(parts: WorkerParts, items: int, count: int, dim: int) -> list[str]:
    name = f"gallery-{items}-{count}"
    fill_gallery(parts, name, items, dim)
    with parts.database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
    with _processes(parts, count) as (client, memory, ready_seconds):
        time.sleep(2 * _SAMPLE_SECONDS)
        plan = {"to_version": "v2", "cutover": "manual"}
        upgrade = client.post(f"/v1/galleries/{name}/upgrades", json=plan).raise_for_status().json()
        while upgrade["state"] != State.READY:
            if upgrade["state"] == State.FAILED:
                raise RuntimeError(upgrade["error"])
            memory.state = upgrade["state"]
            time.sleep(_SAMPLE_SECONDS)
            upgrade = client.get(f"/v1/upgrades/{upgrade['id']}").raise_for_status().json()
        with parts.database.session_scope() as session:
            at = {event.state: event.at.timestamp() for event in events_after(session, upgrade["id"], 0)}
            sizes = text("SELECT pg_total_relation_size(:table)")
            generation = session.scalars(sizes, {"table": embeddings_table(upgrade["to_generation"])}).one()
            all_items = session.scalars(sizes, {"table": "items"}).one()
            total = session.scalars(text("SELECT count(*) FROM items")).one()
        client.post(f"/v1/upgrades/{upgrade['id']}/cancel").raise_for_status()
        client.delete(f"/v1/galleries/{name}").raise_for_status()
        seconds = at[State.INDEXING] - at[State.TRANSFORMING]
        idle = memory.peak("worker", "idle")
        api_states = [memory.peak("api", state) for state in ("idle", *State)]
        return [
            f"{items:,}",
            str(count),
            f"{seconds:.1f}",
            f"{items / seconds:,.0f}",
            f"{at[State.EVALUATING] - at[State.INDEXING]:.1f}",
            f"{idle / _MIB:.0f}",
            f"{(memory.peak('worker', State.TRANSFORMING) - idle) / _MIB:.0f}",
            f"{(memory.peak('worker', State.INDEXING) - idle) / _MIB:.0f}",
            f"{ready_seconds:.1f}",
            f"{memory.peak('api', 'idle') / _MIB:.0f}",
            f"{max(api_states) / _MIB:.0f}",
            f"{generation / items:.0f}",
            f"{all_items / total:.0f}",
        ]


@contextmanager
def _processes(parts: WorkerParts, count: int) -> Iterator[tuple[httpx.Client, _Memory, float]]:
    """An API process and `count` workers; and after how many seconds the API was ready."""
    environment = {**os.environ, **parts.settings.environment()}
    logs = parts.settings.data
    program = [sys.executable, "-m", "service.cli"]
    began = time.monotonic()
    api = spawn([*program, "api", "--port", str(_PORT)], log_path=logs / "api.log", environment=environment)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{_PORT}", timeout=600) as client:
            _wait_until(lambda: _is_ready(client), logs)
            ready_seconds = time.monotonic() - began
            for number in range(count):
                path = logs / f"worker-{number}.log"
                path.unlink(missing_ok=True)
                workers.append(spawn([*program, "worker"], log_path=path, environment=environment))
            worker_logs = [logs / f"worker-{number}.log" for number in range(count)]
            _wait_until(lambda: all(" ready." in path.read_text() for path in worker_logs), logs)
            memory = _Memory({"api": [api.pid], "worker": [worker.pid for worker in workers]})
            try:
                yield client, memory, ready_seconds
            finally:
                memory.stop()
    finally:
        for process in (api, *workers):
            process.terminate()
        for process in (api, *workers):
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


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


if __name__ == "__main__":
    typer.run(run)
