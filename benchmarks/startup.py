"""How long an API process takes to start, until /readyz is 200: with an index file, with a file and changes since it
was built, and, for comparison, without one, when it streams the rows; and the memory that it has then.

    python -m benchmarks.startup --items 1000000

The files are in the page cache, as after a restart of the process alone. Mapped memory is the part of the index file
that was touched, which processes share and the system may take back; private memory is the process's own.
"""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.setting import fill_gallery, machine, register_versions, worker_with_servers
from service.domain.galleries import get_gallery
from service.domain.index_builds import build_generation_index
from service.embedded.processes import spawn
from service.settings import Settings
from workers.app import WorkerParts

_GALLERY = "gallery"
_START_SECONDS = 600.0
_MIB = 2**20


@dataclass(frozen=True)
class _Start:
    """Seconds from the start of the process, and bytes of memory."""

    listening_seconds: float
    ready_seconds: float
    private_bytes: int
    mapped_bytes: int


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 1_000_000,
    dim: int = 128,
    changed: Annotated[float, typer.Option(help="Items added since the file was built, as a share.")] = 0.05,
    kind: Annotated[str, typer.Option(help="Of the index file: graph or flat.")] = "graph",
    repeats: int = 3,
) -> None:
    """Print the table, a row as soon as it is known."""
    columns = ("API process with", "listening s", "ready s", "min to max s", "private MiB", "mapped MiB")
    table = Table(*columns, title=f"Start of an API process, {items:,} items of {dim} float16")
    console = Console(width=120)

    def measure(name: str) -> None:
        row = _row(name, [_start(parts) for _ in range(repeats)])
        table.add_row(*row)
        console.print("\t".join(row))

    with worker_with_servers() as parts:
        register_versions(parts, dim)
        measure("no gallery")
        fill_gallery(parts, _GALLERY, items, dim)
        with parts.database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        measure("rows alone")
        parts.settings.flat_below_rows = Settings.model_fields["flat_below_rows"].default if kind == "graph" else 10**9
        built = _build(parts)
        measure(f"a file, {built}")
        fill_gallery(parts, _GALLERY, int(items * changed), dim, first=items)
        measure(f"a file, {changed:.0%} added since")
    console.print(table)
    console.print(f"{machine()}; {repeats} repeats, medians")


def _build(parts: WorkerParts) -> str:
    """Build the active generation's file; return what it is."""
    with parts.database.session_scope() as session:
        gallery = get_gallery(session, _GALLERY)
    assert gallery.active_generation_id is not None
    built = build_generation_index(
        parts.database, parts.blobs, parts.settings, gallery.id, gallery.active_generation_id, upgrade_id=None
    )
    return f"{built['kind']} (built in {built['seconds']:.0f} s)"


def _start(parts: WorkerParts) -> _Start:
    began = time.monotonic()
    with _api(parts.settings) as (client, process):
        listening = _wait_for(client, "/livez", process, parts.settings.data) - began
        ready = _wait_for(client, "/readyz", process, parts.settings.data) - began
        memory = _memory_bytes(process.pid)
    return _Start(listening, ready, memory["RssAnon"], memory["RssFile"])


@contextmanager
def _api(settings: Settings) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """An API process that is just started, and a client of it."""
    environment = {**os.environ, **settings.environment()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "api", "--port", str(port)]
    process = spawn(command, log_path=settings.data / "api.log", environment=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client, process
    finally:
        process.terminate()
        process.wait()


def _wait_for(client: httpx.Client, path: str, process: "subprocess.Popen[bytes]", folder: Path) -> float:
    """Return when a GET first succeeded."""
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            if client.get(path).is_success:
                return time.monotonic()
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.02)
    raise RuntimeError(f"the API did not start: {(folder / 'api.log').read_text()[-2000:]}")


def _memory_bytes(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines if parts[0].startswith("Rss")}


def _row(name: str, starts: list[_Start]) -> list[str]:
    ready = [start.ready_seconds for start in starts]
    return [
        name,
        f"{statistics.median(start.listening_seconds for start in starts):.1f}",
        f"{statistics.median(ready):.1f}",
        f"{min(ready):.1f} to {max(ready):.1f}",
        f"{statistics.median(start.private_bytes for start in starts) / _MIB:.0f}",
        f"{statistics.median(start.mapped_bytes for start in starts) / _MIB:.0f}",
    ]


if __name__ == "__main__":
    typer.run(run)
