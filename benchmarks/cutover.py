"""How long writers wait for a cutover, by the size of the gallery and by how much was written since the last look.

    python -m benchmarks.cutover --items 10000 --items 1000000

Every repeat is the cutover's whole transaction but its commit, undone, so that the same one can be measured again.
"""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.setting import (
    fill_gallery,
    machine,
    median_and_range,
    register_versions,
    run_batches,
    vacuum,
    worker_with_servers,
)
from service.domain.upgrade.cutover import cut_over
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import State
from workers.app import WorkerParts

_DIM = 128


class _Undo(Exception):
    """Ends a transaction that was only measured."""


def run(
    items: Annotated[list[int] | None, typer.Option(help="Sizes of the gallery.")] = None,
    changes: Annotated[list[int] | None, typer.Option(help="Items imported since the last look.")] = None,
    repeats: int = 5,
) -> None:
    """Print the table."""
    table = Table("items", "items waiting", "transaction, median ms", "min to max ms", title="Cutover, writers waiting")
    with worker_with_servers() as parts:
        register_versions(parts, _DIM)
        for size in items or [10_000, 1_000_000]:
            name = f"gallery-{size}"
            fill_gallery(parts, name, size, _DIM)
            upgrade_id = _make_ready(parts, name)
            vacuum(parts)
            waiting = 0
            for late in changes or [0, 200, 2_000]:
                fill_gallery(parts, name, late - waiting, _DIM, first=size + waiting)
                waiting = late
                times = [_cut_over(parts, upgrade_id) for _ in range(repeats)]
                table.add_row(f"{size:,}", f"{late:,}", *median_and_range(times, ".0f"))
    console = Console()
    console.print(table)
    console.print(f"{machine()}; {_DIM} dimensions, {repeats} repeats")


def _make_ready(parts: WorkerParts, gallery_name: str) -> int:
    """Run an upgrade up to its index, which a cutover does not look at."""
    with parts.database.session_scope() as session:
        upgrade_id = plan_upgrade(session, parts.settings, WantedUpgrade(gallery_name, "v2")).id
    run_batches(parts, upgrade_id)
    with parts.database.session_scope() as session:
        get_upgrade(session, upgrade_id).state = State.READY
    return upgrade_id


def _cut_over(parts: WorkerParts, upgrade_id: int) -> float:
    began = time.perf_counter()
    try:
        with parts.database.session_scope() as session:
            cut_over(session, upgrade_id, parts.networks.transform, parts.settings.cutover_max_changes)
            raise _Undo
    except _Undo:
        return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    typer.run(run)
