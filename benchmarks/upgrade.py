"""An upgrade's speed, from PostgreSQL through h and g to PostgreSQL, against what bounds it and what it replaces.

    python -m benchmarks.upgrade --items 200000
    python -m benchmarks.upgrade --items 200000 --apart

In every repeat, one after the other: h and g on batches in memory; the upgrade by one worker; the same rows read as ORM
objects, transformed in float32 and inserted by `executemany`; and images of 224 x 224 through a network of ResNet-50's
shape, in the number format that this machine is fastest in, without decoding or storing anything. With `--apart` all of
them have half of the cores, and PostgreSQL has the others, as if it had a machine of its own.
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.peers import naive_upgrade
from benchmarks.setting import (
    fill_gallery,
    machine,
    median_and_range,
    paper_sized_transformation,
    register_versions,
    run_batches,
    vacuum,
    worker_with_servers,
)
from models.backbones import ResNet
from models.precision import fastest_precision
from service.db import driver_connection
from service.domain.gallery.current_rows import current_rows_query
from service.domain.gallery.generations import StoredGeneration, get_stored_generation
from service.domain.indexes.removal import remove_dropped
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.domain.upgrade.upgrades import cancel_upgrade
from service.networks.transformations import computing_at_once
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows
from workers.app import WorkerParts

_NAIVE_ROWS_AT_ONCE = 1_000
_IMAGES = 16


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 200_000,
    dim: Annotated[int, typer.Option(help="Of embedding and side-information, old and new.")] = 128,
    naive_items: Annotated[int, typer.Option(help="Of them, for the ORM's turn.")] = 10_000,
    repeats: int = 5,
    apart: Annotated[bool, typer.Option(help="Give PostgreSQL half of the cores for itself.")] = False,
) -> None:
    """Print the table."""
    rates: dict[str, list[float]] = {name: [] for name in ("memory", "upgrade", "naive", "backfill")}
    with worker_with_servers(apart=apart) as parts:
        register_versions(parts, dim)
        fill_gallery(parts, "gallery", items, dim)
        vacuum(parts)

        networks = [paper_sized_transformation(dim, seed) for seed in range(2)]
        backbone = ResNet(50, dim).eval()
        for _ in range(repeats):
            rates["memory"].append(_in_memory(parts))
            rates["upgrade"].append(items / _upgrade(parts))
            with _all_cores():
                rates["naive"].append(_naive(parts, networks, naive_items, dim))
                rates["backfill"].append(_backfill(backbone))
        settings = parts.settings

    title = f"{items:,} items of {dim} + {dim} float16"
    console = Console()
    console.print(_table(rates, f"{title}, PostgreSQL on cores of its own" if apart else title))
    console.print(
        f"{machine()}; {fastest_precision('cpu')}, {settings.batches_at_once} batches of"
        f" {settings.batch_items:,} at once, {settings.rows_per_chunk:,} rows through h and g; {repeats} repeats"
    )


def _table(rates: dict[str, list[float]], title: str) -> Table:
    table = Table("what", "items/s, median", "min to max", "upgrade / this", "budget", title=title)
    names = {
        "upgrade": ("upgrade, one worker", ""),
        "memory": ("h and g on batches in memory", ">= 0.8"),
        "naive": ("ORM, float32, executemany", ""),
        "backfill": ("ResNet-50's shape at 224 px", ">= 300"),
    }
    for key, (name, budget) in names.items():
        ratios = [upgrade / other for upgrade, other in zip(rates["upgrade"], rates[key], strict=True)]
        table.add_row(name, *median_and_range(rates[key], ",.0f"), f"{statistics.median(ratios):,.2f}", budget)
    return table


@contextmanager
def _all_cores() -> Iterator[None]:
    """What is not a worker's thread among others has all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


def _in_memory(parts: WorkerParts) -> float:
    """Return items/s of h and g, from float16 to float16, with as many threads as compute in a worker."""
    source, target, path = _plan(parts)
    with parts.database.session_scope() as session:
        query = f"{current_rows_query(source, source.vector_format)} LIMIT {parts.settings.batch_items}"
        rows = EmbeddingRows.concatenate(list(read_rows(driver_connection(session), query, (), source.vector_format)))
    threads = computing_at_once(parts.settings)
    with ThreadPoolExecutor(threads) as pool:

        def transform(times: int) -> None:
            for _ in range(times):
                parts.networks.transform(rows, target.vector_format, path)

        list(pool.map(transform, [1] * threads))
        began = time.perf_counter()
        list(pool.map(transform, [3] * threads))
        return 3 * threads * len(rows) / (time.perf_counter() - began)


def _plan(parts: WorkerParts) -> tuple[StoredGeneration, StoredGeneration, tuple[int, ...]]:
    """Return the generations and the path of an upgrade, which is cancelled again."""
    with parts.database.session_scope() as session:
        upgrade = plan_upgrade(session, parts.settings, WantedUpgrade("gallery", "v2"))
        source, target = (
            get_stored_generation(session, upgrade.gallery_id, id_)
            for id_ in (upgrade.from_generation_id, upgrade.to_generation_id)
        )
        path = upgrade.legs[0].transformation_ids
        session.rollback()
    return source, target, path


def _upgrade(parts: WorkerParts) -> float:
    """Return the seconds from the first batch to the last, and remove what was written."""
    with parts.database.session_scope() as session:
        upgrade_id = plan_upgrade(session, parts.settings, WantedUpgrade("gallery", "v2")).id
    began, ended = run_batches(parts, upgrade_id)
    with parts.database.session_scope() as session:
        cancel_upgrade(session, upgrade_id)
    remove_dropped(parts.database, parts.engine, wait_seconds=60)
    return ended - began


def _naive(parts: WorkerParts, networks: Sequence[torch.nn.Module], items: int, dim: int) -> float:
    source, _, _ = _plan(parts)
    with parts.database.session_scope() as session:
        session.execute(text(f"CREATE TABLE naive_source AS SELECT * FROM {source.table} LIMIT {items}"))
        session.execute(text(f"CREATE TABLE naive_target (LIKE {source.table} INCLUDING ALL)"))
    with parts.database.session_scope() as session:
        began = time.perf_counter()
        written = naive_upgrade(session, "naive_source", "naive_target", dim, networks, _NAIVE_ROWS_AT_ONCE)
        session.commit()
        seconds = time.perf_counter() - began
    with parts.database.session_scope() as session:
        session.execute(text("DROP TABLE naive_source, naive_target"))
    return written / seconds


def _backfill(backbone: torch.nn.Module) -> float:
    dtype = torch.bfloat16 if fastest_precision("cpu") == "bfloat16" else torch.float32
    images = torch.randn(_IMAGES, 3, 224, 224).to(dtype, memory_format=torch.channels_last)
    network = backbone.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stub
    with torch.inference_mode():
        network(images)
        began = time.perf_counter()
        network(images)
    return _IMAGES / (time.perf_counter() - began)


if __name__ == "__main__":
    typer.run(run)
