"""One port with one API process, and with several: queries a second, and the memory of all of them.

    python -m benchmarks.several_processes --items 200000 --processes 1 --processes 2

The gallery's vectors are random, 128 dimensions, with an index file as a worker builds it, which every process maps.
Clients are a process of their own on the same cores, each with one connection. Memory is the sum of the processes' PSS,
in which a page that n of them share counts for 1/n in each, the parent's with it; so it is measured with nothing else
that has the file open. The arrangements take turns, each started anew.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import Load, ask, load_process
from benchmarks.processes import api_process
from benchmarks.setting import (
    fill_gallery,
    machine,
    median_and_range,
    random_image,
    register_versions,
    vacuum,
    worker_with_servers,
)
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.builds import build_generation_index
from workers.app import WorkerParts

_DIM, _PORT = 128, 18_531
_QUERIES = 256
_VECTORS, _IMAGES = "by a vector", "by an image"
_PATHS = {_VECTORS: "/v1/galleries/g/search/vectors", _IMAGES: "/v1/galleries/g/search?k=10"}
_CONTENT_TYPES = {_VECTORS: "application/json", _IMAGES: "image/png"}


@dataclass
class _Measured:
    """One value per repeat: answers a second, their 99th percentile in milliseconds, and bytes."""

    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    p99_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bytes: list[int] = field(default_factory=list)


def run(
    items: Annotated[int, typer.Option(help="Of the gallery.")] = 200_000,
    processes: Annotated[list[int] | None, typer.Option(help="How many share the port.")] = None,
    clients: Annotated[int, typer.Option(help="How many ask at the same time.")] = 16,
    seconds: float = 5.0,
    repeats: int = 3,
) -> None:
    """Print the table."""
    measured: dict[int, _Measured] = defaultdict(_Measured)
    with worker_with_servers(trust_torchscript=False) as parts:
        _fill(parts, items)
        for _ in range(repeats):
            for count in processes or [1, 2]:
                _measure(parts, count, clients, seconds, measured[count])
    console = Console(width=130)
    console.print(_table(measured))
    console.print(f"{items:,} x {_DIM}, {clients} clients, {repeats} repeats of {seconds:g} s; {machine()}")


def _fill(parts: WorkerParts, items: int) -> None:
    register_versions(parts, _DIM)
    fill_gallery(parts, "g", items, _DIM)
    vacuum(parts)
    with parts.database.session_scope() as session:
        gallery = get_gallery(session, "g")
        key = GenerationKey(gallery.id, gallery.active_generation_id or 0)
    build_generation_index(parts.database, parts.engine, key)


def _measure(parts: WorkerParts, count: int, clients: int, seconds: float, to: _Measured) -> None:
    bodies = {_VECTORS: _vector_queries(), _IMAGES: [random_image(seed) for seed in range(_QUERIES)]}
    with api_process(parts, _PORT, processes=count) as api:
        for kind, path in _PATHS.items():
            load = Load(_PORT, path, clients, 0.2 * seconds, seconds, _CONTENT_TYPES[kind])
            with load_process(bodies[kind]) as process:
                answered = process.submit(ask, load).result()
            if answered.failures or not answered.milliseconds:
                raise RuntimeError(f"{answered.failures} of {len(answered.milliseconds)} queries failed")
            to.rates[kind].append(len(answered.milliseconds) / seconds)
            to.p99_ms[kind].append(float(np.percentile(answered.milliseconds, 99)))
        to.bytes.append(sum(map(_proportional_bytes, _family(api.pid))))


def _vector_queries() -> list[bytes]:
    vectors = np.random.default_rng(7).standard_normal((_QUERIES, 1, _DIM), np.float32)
    return [json.dumps({"vectors": vector.tolist(), "k": 10}).encode() for vector in vectors]


def _family(pid: int) -> list[int]:
    """Return a process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _proportional_bytes(pid: int) -> int:
    """Return the PSS of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _table(measured: dict[int, _Measured]) -> Table:
    table = Table("processes", "queries", "a second", "min to max", "x first", "p99 ms", "PSS of all, MiB")
    first = next(iter(measured.values()))
    for count, found in measured.items():
        for kind in _PATHS:
            table.add_row(
                str(count),
                kind,
                *median_and_range(found.rates[kind], ",.0f"),
                f"{_median_ratio(found.rates[kind], first.rates[kind]):.2f}",
                f"{statistics.median(found.p99_ms[kind]):.0f}",
                f"{statistics.median(found.bytes) / 2**20:,.0f}",
            )
    return table


def _median_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


if __name__ == "__main__":
    typer.run(run)
