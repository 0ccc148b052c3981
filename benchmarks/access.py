"""What a key costs: the time of a search by one vector with a key and without one, in turns, of one API process.

python -m benchmarks.access --queries 4000
"""

import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import Api, api_process, processor_ms
from benchmarks.setting import fill_gallery, machine, register_versions, worker_with_servers
from service.access.keys import WantedKey, create_key

_PORT = 18_524
_GALLERY = "gallery"


@dataclass(frozen=True)
class Query:
    """How long one took, and how much of the service's processor meanwhile."""

    ms: float
    processor_ms: float


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 10_000,
    dim: int = 128,
    queries: Annotated[int, typer.Option(help="How many with a key, and as many without one.")] = 4_000,
) -> None:
    """Print medians, and the medians of the differences between queries that followed each other."""
    with worker_with_servers() as parts:
        register_versions(parts, dim)
        fill_gallery(parts, _GALLERY, items, dim)
        with parts.database.session_scope() as session:
            shown = {"Authorization": f"Bearer {create_key(session, WantedKey('benchmark', ['search'])).token}"}
        body = {"vectors": np.random.default_rng(0).standard_normal((1, dim)).tolist(), "k": 10}
        with api_process(parts, _PORT) as api:
            ways: dict[str, dict[str, str]] = {"without a key": {}, "with a key": shown}
            found: dict[str, list[Query]] = {name: [] for name in ways}
            _search(api, shown, body, 100)  # the process is warm, and knows the key
            for _ in range(queries):
                for name, headers in ways.items():
                    found[name] += _search(api, headers, body, 1)

    title = f"{items:,} items of {dim}, {queries:,} queries each"
    table = Table("search by one vector", "p50 ms", "p99 ms", "p50 ms of the service's processor", title=title)
    for name, each in found.items():
        p50, p99 = np.percentile([query.ms for query in each], [50, 99])
        processor = statistics.median(query.processor_ms for query in each)
        table.add_row(name, f"{p50:.3f}", f"{p99:.3f}", f"{processor:.3f}")
    pairs = list(zip(*found.values(), strict=True))
    more = statistics.median(with_key.ms - without.ms for without, with_key in pairs)
    of_processor = statistics.median(with_key.processor_ms - without.processor_ms for without, with_key in pairs)
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{more:+.3f} ms with a key, {of_processor:+.3f} of them of a processor, the medians of pairs; {machine()}"
    )


def _search(api: Api, headers: dict[str, str], body: dict[str, Any], count: int) -> list[Query]:
    found = []
    for _ in range(count):
        before, began = processor_ms(api.pid), time.perf_counter()
        api.client.post(f"/v1/galleries/{_GALLERY}/search/vectors", json=body, headers=headers).raise_for_status()
        ms = (time.perf_counter() - began) * 1e3
        found.append(Query(ms, processor_ms(api.pid) - before))
    return found


if __name__ == "__main__":
    typer.run(run)
