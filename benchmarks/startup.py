"""How long an API process takes to start, until /readyz is 200: with an index file, with a file and changes since it
was built, and, for comparison, without one, when it streams the rows; and the memory that it has then.

    python -m benchmarks.startup --items 1000000

The files are in the page cache, as after a restart of the process alone. Mapped memory is the part of the index file
that was touched, which processes share and the system may take back; private memory is the process's own.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import api_process
from benchmarks.setting import fill_gallery, machine, median_and_range, register_versions, vacuum, worker_with_servers
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.builds import build_generation_index
from service.index.protocol import IndexOption
from workers.app import WorkerParts

_PORT = 18_523
_GALLERY = "gallery"
_MIB = 2**20


@dataclass(frozen=True)
class _Start:
    """Seconds from the start of the process until it was ready, and bytes of memory then."""

    seconds: float
    private_bytes: int
    mapped_bytes: int


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 1_000_000,
    dim: int = 128,
    changed: Annotated[float, typer.Option(help="Items added since the file was built, as a share.")] = 0.05,
    kind: Annotated[IndexOption, typer.Option(help="Of the index file, as a gallery's `index`.")] = "hnsw",
    repeats: int = 3,
) -> None:
    """Print the table, a row as soon as it is known."""
    columns = ("API process with", "ready s", "min to max s", "private MiB", "mapped MiB")
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
        vacuum(parts)
        measure("rows alone")
        measure(f"a file, {_build(parts, kind)}")
        fill_gallery(parts, _GALLERY, int(items * changed), dim, first=items)
        measure(f"a file, {changed:.0%} added since")
    console.print(table)
    console.print(f"{machine()}; {repeats} repeats, medians")


def _build(parts: WorkerParts, kind: IndexOption) -> str:
    """Build the active generation's file; return what it is."""
    with parts.database.session_scope() as session:
        gallery = get_gallery(session, _GALLERY)
        gallery.index = kind
    assert gallery.active_generation_id is not None
    generation = GenerationKey(gallery.id, gallery.active_generation_id)
    built = build_generation_index(parts.database, parts.engine, generation)
    return f"{built['kind']} (built in {built['seconds']:.0f} s)"


def _start(parts: WorkerParts) -> _Start:
    with api_process(parts, _PORT) as api:
        memory = _memory_bytes(api.pid)
        return _Start(api.start_seconds, memory["RssAnon"], memory["RssFile"])


def _memory_bytes(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines if parts[0].startswith("Rss")}


def _row(name: str, starts: list[_Start]) -> list[str]:
    return [
        name,
        *median_and_range([start.seconds for start in starts], ".1f"),
        f"{statistics.median(start.private_bytes for start in starts) / _MIB:.0f}",
        f"{statistics.median(start.mapped_bytes for start in starts) / _MIB:.0f}",
    ]


if __name__ == "__main__":
    typer.run(run)
