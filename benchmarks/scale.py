"""Whole upgrades by worker processes, by the size of the gallery and the number of workers: seconds, rows/s, memory of
worker and API while rows are transformed and while the index is built, and database bytes per item.

    python -m benchmarks.scale --items 10000 --items 100000 --items 1000000
    python -m benchmarks.scale --items 200000 --workers 1 --workers 2 --workers 4

The index is exact at every size, so that the table shows the moving of rows and not the building of a graph.
"""

import math
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.processes import MemoryTrace, api_process, state_times, upgrade_until_ready, worker_processes
from benchmarks.setting import fill_gallery, machine, register_versions, vacuum, worker_with_servers
from service.domain.upgrade_state import State
from service.tables import embeddings_table
from workers.app import WorkerParts

_PORT = 18_517
_SAMPLE_SECONDS = 0.2
_MIB = 2**20


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
    vacuum(parts)
    with api_process(parts, _PORT) as api, worker_processes(parts, count) as pids:
        with MemoryTrace({"api": [api.pid], "worker": pids}, _SAMPLE_SECONDS) as memory:
            time.sleep(2 * _SAMPLE_SECONDS)
            upgrade = upgrade_until_ready(api.client, name, "v2")

        at = state_times(parts, upgrade["id"])
        with parts.database.session_scope() as session:
            sizes = text("SELECT pg_total_relation_size(:table)")
            generation = session.scalars(sizes, {"table": embeddings_table(upgrade["to_generation"])}).one()
            all_items = session.scalars(sizes, {"table": "items"}).one()
            total = session.scalars(text("SELECT count(*) FROM items")).one()

        api.client.post(f"/v1/upgrades/{upgrade['id']}/cancel").raise_for_status()
        api.client.delete(f"/v1/galleries/{name}").raise_for_status()

        seconds = at[State.INDEXING] - at[State.TRANSFORMING]
        idle = memory.peak("worker", 0, at[State.PLANNED])
        transforming = memory.peak("worker", at[State.TRANSFORMING], at[State.INDEXING])
        indexing = memory.peak("worker", at[State.INDEXING], at[State.EVALUATING])

        return [
            f"{items:,}",
            str(count),
            f"{seconds:.1f}",
            f"{items / seconds:,.0f}",
            f"{at[State.EVALUATING] - at[State.INDEXING]:.1f}",
            f"{idle / _MIB:.0f}",
            f"{(transforming - idle) / _MIB:.0f}",
            f"{(indexing - idle) / _MIB:.0f}",
            f"{api.start_seconds:.1f}",
            f"{memory.peak('api', 0, at[State.PLANNED]) / _MIB:.0f}",
            f"{memory.peak('api', 0, math.inf) / _MIB:.0f}",
            f"{generation / items:.0f}",
            f"{all_items / total:.0f}",
        ]


if __name__ == "__main__":
    typer.run(run)
