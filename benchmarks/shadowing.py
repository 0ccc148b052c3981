"""Image queries over HTTP while an upgrade is ready: how long they take where a share of them is shadowed, and where
none is.

    python -m benchmarks.shadowing --share 0.01

Two API processes that differ only in `GALLERY_SHADOW_SHARE` run on one database, with the candidate loaded, and are
asked in turns by clients that are one process on the same cores. φ and ψ of both versions are small residual networks
with random weights, and the gallery's vectors are random.
"""

import statistics
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from benchmarks.closed_loop import Load, ask, load_process
from benchmarks.processes import api_process, upgrade_until_ready, worker_processes
from benchmarks.setting import (
    fill_gallery,
    machine,
    median_and_range,
    random_image,
    register_versions,
    worker_with_servers,
)
from models.backbones import SmallResNet
from service.tables import ShadowedQuery
from workers.app import WorkerParts

_FIRST_PORT = 18_531
_PATH = "/v1/galleries/g/search?k=10"
_QUERY_IMAGES = 512
_BUDGET = 1.1


@dataclass
class _Measured:
    """One value per repeat; `shadowed` are the queries that were kept meanwhile."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    shadowed: int = 0


def run(
    share: Annotated[float, typer.Option(help="GALLERY_SHADOW_SHARE to compare with none.")] = 0.01,
    per_second: Annotated[int, typer.Option(help="GALLERY_SHADOW_PER_SECOND.")] = 5,
    clients: Annotated[list[int] | None, typer.Option(help="How many ask at the same time.")] = None,
    items: Annotated[int, typer.Option(help="Of the gallery, in an exact index.")] = 10_000,
    dim: int = 128,
    width: Annotated[int, typer.Option(help="Of the encoders, SmallResNets of one block a stage.")] = 32,
    seconds: float = 10.0,
    repeats: int = 7,
) -> None:
    """Print the table; the two take turns, so that a change of the machine's speed meets both."""
    torch.manual_seed(0)
    files = [random_image(seed) for seed in range(_QUERY_IMAGES)]
    shares = (0.0, share)
    measured: dict[tuple[int, float], _Measured] = defaultdict(_Measured)

    with worker_with_servers(shadow_per_second=per_second, shadowed_query_items=10**6) as parts, ExitStack() as stack:
        register_versions(parts, dim, SmallResNet(width, 1, dim, stem_stride=2).eval())
        fill_gallery(parts, "g", items, dim)
        ports = {share: _FIRST_PORT + place for place, share in enumerate(shares)}
        apis = {share: stack.enter_context(api_process(parts, ports[share], shadow_share=share)) for share in shares}
        with worker_processes(parts, 1):
            upgrade_until_ready(apis[0.0].client, "g", "v2")
        for api in apis.values():
            api.client.post(f"{_PATH}&generation=next", content=files[0]).raise_for_status()  # it is loaded now
        process = stack.enter_context(load_process(files))

        for number in range(repeats):
            for count in clients or [1, 8]:
                for each in shares if number % 2 else reversed(shares):
                    load = Load(ports[each], _PATH, count, warm_seconds=0.2 * seconds, seconds=seconds)
                    _measure(parts, process, load, measured[count, each])

    console = Console(width=130)
    console.print(_table(measured, share))
    console.print(
        f"{machine()}; SmallResNets of width {width} at 32 px, {items:,} x {dim}, {repeats} repeats of {seconds:g} s"
    )


def _measure(parts: WorkerParts, process: ProcessPoolExecutor, load: Load, to: _Measured) -> None:
    before = _count_shadowed(parts)
    answered = process.submit(ask, load).result()
    time.sleep(1.0)  # what waits for its shadow must not meet the next measurement
    if answered.failures or not answered.milliseconds:
        raise RuntimeError(f"{answered.failures} of {len(answered.milliseconds)} queries failed")
    to.rates.append(len(answered.milliseconds) / load.seconds)
    to.p50_ms.append(float(np.percentile(answered.milliseconds, 50)))
    to.p99_ms.append(float(np.percentile(answered.milliseconds, 99)))
    to.shadowed += _count_shadowed(parts) - before


def _count_shadowed(parts: WorkerParts) -> int:
    with parts.database.session_scope() as session:
        return session.scalar(select(func.count()).select_from(ShadowedQuery)) or 0


def _table(measured: dict[tuple[int, float], _Measured], share: float) -> Table:
    columns = ("clients", "share", "shadowed", "queries/s", "p50 ms", "p99 ms", "min to max")
    table = Table(*columns, f"p99 with / without (budget: {_BUDGET:g})", "min to max", title="Shadowed image queries")

    for count in sorted({count for count, _ in measured}):
        without, shadowed = measured[count, 0.0], measured[count, share]
        ratios = [after / before for after, before in zip(shadowed.p99_ms, without.p99_ms, strict=True)]
        for each, found in ((0.0, without), (share, shadowed)):
            table.add_row(
                str(count),
                f"{each:g}",
                str(found.shadowed),
                f"{statistics.median(found.rates):,.0f}",
                f"{statistics.median(found.p50_ms):.1f}",
                *median_and_range(found.p99_ms, ".1f"),
                *(median_and_range(ratios, ".2f") if each else ("", "")),
            )
        table.add_section()
    return table


if __name__ == "__main__":
    typer.run(run)
