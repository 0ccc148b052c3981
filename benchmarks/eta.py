"""How far an upgrade's `eta_seconds` is from its real finish, from 20 % progress on.

    python -m benchmarks.eta --items 600000

One worker runs the upgrade; a second thread reads the progress as `GET /v1/upgrades/{id}` does. The error of a reading
is |estimate - what really remained|, in percent of what remained and of the whole duration; readings within the last
batches under way are left out of the first, because nothing is counted until a batch ends.
"""

import statistics
import threading
import time
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.setting import fill_gallery, machine, register_versions, run_batches, worker_with_servers
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.domain.upgrade.progress import progress_of
from service.domain.upgrade.upgrades import get_upgrade
from workers.app import WorkerParts

_DIM = 128
_READ_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class _Reading:
    at: float
    share: float
    eta_seconds: float


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 600_000,
    speed: Annotated[list[float] | None, typer.Option(help="The throttle; one run each.")] = None,
) -> None:
    """Print the table."""
    columns = ("speed", "progress", "readings", "of what remains: median %", "largest %", "of the whole: largest %")
    table = Table(*columns, title=f"Error of the ETA, {items:,} items")

    with worker_with_servers() as parts:
        register_versions(parts, _DIM)
        for number, share in enumerate(speed or [1.0, 0.5]):
            name = f"gallery-{number}"
            fill_gallery(parts, name, items, _DIM)
            readings, began, finish = _run(parts, name, share)

            last_batches = 1 - parts.settings.batches_at_once * parts.settings.batch_items / items
            for low, high in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
                within = [reading for reading in readings if low <= reading.share < high]
                wrong_by = [abs(reading.at + reading.eta_seconds - finish) for reading in within]
                of_rest = [
                    wrong / (finish - reading.at) * 100
                    for wrong, reading in zip(wrong_by, within, strict=True)
                    if reading.share < last_batches
                ]
                if of_rest:
                    of_whole = max(wrong_by) / (finish - began) * 100
                    figures = (f"{statistics.median(of_rest):.0f}", f"{max(of_rest):.0f}", f"{of_whole:.0f}")
                    table.add_row(f"{share:g}", f"{low:.0%} to {high:.0%}", str(len(within)), *figures)

    console = Console()
    console.print(table)
    console.print(f"{machine()}; {_DIM} dimensions")


def _run(parts: WorkerParts, gallery_name: str, speed: float) -> tuple[list[_Reading], float, float]:
    """Return the readings of the bulk pass, and when it began and ended."""
    with parts.database.session_scope() as session:
        upgrade_id = plan_upgrade(session, parts.settings, WantedUpgrade(gallery_name, "v2", speed=speed)).id
    readings: list[_Reading] = []
    finished = threading.Event()
    reader = threading.Thread(target=_read, args=(parts, upgrade_id, readings, finished))
    reader.start()
    began, finish = run_batches(parts, upgrade_id)
    finished.set()
    reader.join()
    return readings, began, finish


def _read(parts: WorkerParts, upgrade_id: int, readings: list[_Reading], finished: threading.Event) -> None:
    while not finished.wait(_READ_EVERY_SECONDS):
        with parts.database.session_scope() as session:
            phase = progress_of(session, [get_upgrade(session, upgrade_id)])[upgrade_id]["transforming"]
        if phase.eta_seconds:
            readings.append(_Reading(time.time(), phase.done / phase.total, phase.eta_seconds))


if __name__ == "__main__":
    typer.run(run)
