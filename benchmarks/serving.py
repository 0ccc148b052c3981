"""Image queries over HTTP: how many a second and how long each, by the number of clients, with shared batches and
without; and what a query takes beside φ and FAISS called in this process.

    python -m benchmarks.serving --images ../shared/data/cifar100/test.parquet

API processes that differ only in `GALLERY_QUERY_BATCH_IMAGES` and `GALLERY_QUERY_BATCH_WAIT_MS` run on one database and
are asked in turns. The clients are one process on the same cores, so at many clients it takes its part of the machine;
the CPU time is the API process's own. The gallery's vectors are random, and so are the weights of the encoder, a small
residual network: its cost is `--width`.
"""

import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import faiss
import httpx
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import Load, ask, load_process
from benchmarks.processes import Api, api_process
from benchmarks.setting import fill_gallery, machine, median_and_range, random_image, worker_with_servers
from models.artifacts import load_encoder, save_network
from models.backbones import SmallResNet
from models.image_sets import find_images
from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess_batch
from service.domain.registry.registration import Registration, VersionNetworks, VersionSpec
from service.networks.trials import DeclaredEncoders
from workers.app import WorkerParts

_PREPROCESSING = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
_PHOTOGRAPHS = Path("../shared/data/cifar100/test.parquet")
_PATH = "/v1/galleries/g/search?k=10"
_QUERY_IMAGES = 512
_BUDGET_MS = 3.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class _Server:
    """An API process and how its queries share batches; `name` is for the table."""

    name: str
    batch_images: int
    wait_ms: float
    port: int = field(default_factory=_free_port)

    def running(self, parts: WorkerParts) -> AbstractContextManager[Api]:
        own = {"query_batch_images": self.batch_images, "query_batch_wait_ms": self.wait_ms}
        return api_process(parts, self.port, **own)

    def encoded(self) -> tuple[float, float]:
        """Return how many runs of the encoder there were, and how many images they had."""
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("gallery_query_batch_images_"))
        return float(values["gallery_query_batch_images_count"]), float(values["gallery_query_batch_images_sum"])


@dataclass
class _Measured:
    """One value per repeat."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    batch_images: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def run(
    images: Annotated[Path, typer.Option(help="Photographs to ask by; random ones where it is absent.")] = _PHOTOGRAPHS,
    clients: Annotated[list[int] | None, typer.Option(help="How many ask at the same time.")] = None,
    wait_ms: Annotated[list[float] | None, typer.Option(help="GALLERY_QUERY_BATCH_WAIT_MS to try.")] = None,
    batch_images: Annotated[int, typer.Option(help="GALLERY_QUERY_BATCH_IMAGES of shared batches.")] = 32,
    items: Annotated[int, typer.Option(help="Of the gallery, in an exact index.")] = 10_000,
    dim: int = 128,
    width: Annotated[int, typer.Option(help="Of the encoder, a SmallResNet of one block a stage.")] = 32,
    seconds: float = 5.0,
    repeats: int = 5,
) -> None:
    """Print the tables; the ways take turns, so that a change of the machine's speed meets all of them."""
    torch.manual_seed(0)
    encoder = save_network(SmallResNet(width, 1, dim, stem_stride=2).eval())
    files = _query_images(images)
    shared = [_Server(f"shared, waiting {ms:g} ms", batch_images, ms) for ms in wait_ms or [0.0, 2.0]]
    servers = [_Server("each query alone", 1, 0.0), *shared]
    measured: dict[tuple[int, str], _Measured] = defaultdict(_Measured)
    in_process_ms: list[float] = []

    with worker_with_servers() as parts, ExitStack() as stack:
        _register(parts, encoder, dim)
        fill_gallery(parts, "g", items, dim)
        pids = {server.port: stack.enter_context(server.running(parts)).pid for server in servers}
        process = stack.enter_context(load_process(files))
        query = _in_process(encoder, items, dim)

        for _ in range(repeats):
            in_process_ms.append(_median_ms(query, files, seconds))
            for count in clients or [1, 8, 64]:
                for server in servers:
                    load = Load(server.port, _PATH, count, warm_seconds=0.2 * seconds, seconds=seconds)
                    _measure(server, pids[server.port], process, load, measured[count, server.name])

    console = Console(width=130)
    console.print(_throughput(measured, servers))
    if (1, servers[-1].name) in measured:
        console.print(_added(in_process_ms, {s.name: measured[1, s.name].p50_ms for s in servers}))
    console.print(
        f"{machine()}; SmallResNet of width {width} at 32 px, {items:,} x {dim}, {repeats} repeats of {seconds:g} s"
    )


def _query_images(place: Path) -> list[bytes]:
    if place.exists():
        return [image.data for image in islice(find_images(place).read(), _QUERY_IMAGES)]
    return [random_image(seed) for seed in range(_QUERY_IMAGES)]


def _register(parts: WorkerParts, encoder: bytes, dim: int) -> None:
    """Register v1; its ψ is never asked here."""
    spec = VersionSpec(dim, dim, normalize=False, encoders=DeclaredEncoders(dim, dim, _PREPROCESSING))
    networks = VersionNetworks(encoder, encoder)
    Registration(parts.database, parts.blobs, parts.settings).of_version("v1", spec, networks)


def _measure(server: _Server, pid: int, process: ProcessPoolExecutor, load: Load, to: _Measured) -> None:
    before, cpu_before = server.encoded(), _cpu_seconds(pid)
    answered = process.submit(ask, load).result()
    after, cpu_after = server.encoded(), _cpu_seconds(pid)
    if answered.failures or not answered.milliseconds:
        raise RuntimeError(f"{answered.failures} of {len(answered.milliseconds)} queries failed")
    to.rates.append(len(answered.milliseconds) / load.seconds)
    to.p50_ms.append(float(np.percentile(answered.milliseconds, 50)))
    to.p99_ms.append(float(np.percentile(answered.milliseconds, 99)))
    runs, queries = (now - then for now, then in zip(after, before, strict=True))
    to.batch_images.append(queries / runs)
    to.cpu_ms.append(1000 * (cpu_after - cpu_before) / queries)


def _cpu_seconds(pid: int) -> float:
    """Return what a process has computed, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _in_process(encoder: bytes, items: int, dim: int) -> Callable[[bytes], None]:
    """Return a query without a service: decode, preprocess, φ, exact search. FAISS has one thread, as in the service:
    more of them get in the way of φ's."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as an API process has them
    faiss.omp_set_num_threads(1)
    network = load_encoder(encoder, output_dim=dim, input_size=32)
    preprocessing = Preprocessing.from_json(_PREPROCESSING)
    index = faiss.IndexFlatL2(dim)
    index.add(np.random.default_rng(0).standard_normal((items, dim), np.float32))

    def query(image: bytes) -> None:
        index.search(network(preprocess_batch([decode_image(image)], preprocessing)), 10)

    return query


def _median_ms(query: Callable[[bytes], None], images: Sequence[bytes], seconds: float) -> float:
    """Return the median of one query after another, the first fifth of the time not counted."""
    milliseconds, number = [], 0
    begins = time.perf_counter() + 0.2 * seconds
    began = time.perf_counter()
    while began < begins + seconds:
        query(images[number % len(images)])
        ended = time.perf_counter()
        if ended >= begins:
            milliseconds.append((ended - began) * 1000)
        number, began = number + 1, ended
    return statistics.median(milliseconds)


def _throughput(measured: dict[tuple[int, str], _Measured], servers: Sequence[_Server]) -> Table:
    columns = ("clients", "batches", "queries/s", "min to max", "x alone", "p50 ms", "p99 ms", "images a batch")
    table = Table(*columns, "CPU ms a query", title="Image queries over HTTP")

    for count in sorted({count for count, _ in measured}):
        alone = measured[count, servers[0].name]
        for server in servers:
            found = measured[count, server.name]
            ratios = [rate / reference for rate, reference in zip(found.rates, alone.rates, strict=True)]
            table.add_row(
                str(count),
                server.name,
                *median_and_range(found.rates, ",.0f"),
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(found.p50_ms):.1f}",
                f"{statistics.median(found.p99_ms):.1f}",
                f"{statistics.median(found.batch_images):.1f}",
                f"{statistics.median(found.cpu_ms):.2f}",
            )
        table.add_section()
    return table


def _added(in_process_ms: Sequence[float], over_http_ms: dict[str, list[float]]) -> Table:
    columns = ("batches", "in process", "over HTTP", f"added (budget: {_BUDGET_MS:g})", "min to max")
    table = Table(*columns, title="One client, p50 ms: what HTTP adds to decoding, φ and FAISS in process")
    for name, over_http in over_http_ms.items():
        added = [after - before for before, after in zip(in_process_ms, over_http, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(in_process_ms):.2f}",
            f"{statistics.median(over_http):.2f}",
            *median_and_range(added, ".2f"),
        )
    return table


if __name__ == "__main__":
    typer.run(run)
