"""What a key costs: the time of a search by one vector with a key and without one, in turns, of one API process.

python -m benchmarks.access --queries 4000
"""

import statistics
import time
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import api_process
from benchmarks.setting import fill_gallery, machine, register_versions, worker_with_servers
from service.access.keys import WantedKey, create_key

_PORT = 18_524
_GALLERY = "gallery"


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 10_000,
    dim: int = 128,
    queries: Annotated[int, typer.Option(help="How many with a key, and as many without one.")] = 4_000,
) -> None:
    """Print medians, and the median of the differences between queries that followed each other."""
    with worker_with_servers() as parts:
        register_versions(parts, dim)
        fill_gallery(parts, _GALLERY, items, dim)
        with parts.database.session_scope() as session:
            shown = {"Authorization": f"Bearer {create_key(session, WantedKey('benchmark', ['search'])).token}"}
        body = {"vectors": np.random.default_rng(0).standard_normal((1, dim)).tolist(), "k": 10}
        with api_process(parts, _PORT) as api:
            without: list[float] = []
            with_key: list[float] = []
            for headers, seconds in [({}, without), (shown, with_key)] * (queries + 100):
                began = time.perf_counter()
                api.client.post(
                    f"/v1/galleries/{_GALLERY}/search/vectors", json=body, headers=headers
                ).raise_for_status()
                seconds.append(time.perf_counter() - began)

    with_key, without = with_key[100:], without[100:]
    table = Table(
        "search by one vector", "p50 ms", "p99 ms", title=f"{items:,} items of {dim}, {queries:,} queries each"
    )
    for name, times in {"without a key": without, "with a key": with_key}.items():
        p50, p99 = np.percentile(times, [50, 99]) * 1_000
        table.add_row(name, f"{p50:.3f}", f"{p99:.3f}")
    more = statistics.median(b - a for a, b in zip(without, with_key, strict=True))
    console = Console(width=120)
    console.print(table)
    console.print(f"{more * 1_000:+.3f} ms with a key, the median of pairs; {machine()}")


if __name__ == "__main__":
    typer.run(run)
