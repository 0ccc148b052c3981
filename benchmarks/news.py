"""How soon two API processes know of what one of them was told: a write, a cutover and a rollback.

    python -m benchmarks.news --items 20000

A write is an import of one vector through the first process; the second one is asked for its nearest until it is that
item. For a switch, both are asked all the while by a client each, without a pause; what counts is when each first
answered by the other generation, and how many answers that were asked for after the switch was answered for were still
by the one before.
"""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

import httpx
import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import api_process, upgrade_until_ready, worker_processes
from benchmarks.setting import fill_gallery, machine, register_versions, worker_with_servers

_DIM = 128
_PORTS = (18_527, 18_528)
_FAR = 100.0  # from everything else: an item that was just written is its own nearest
_PATH = "/v1/galleries/g/search/vectors"


@dataclass
class _Asked:
    """One client's answers: when each was asked for, when it came, and the generation that it names."""

    answers: list[tuple[float, float, int]] = field(default_factory=list)

    def first_by(self, generation: int) -> float:
        """Return when the first answer by the generation came."""
        return next(came for _, came, by in self.answers if by == generation)

    def late(self, after: float, generation: int) -> int:
        """Return how many answers asked for after a moment are not by the generation."""
        return sum(asked > after and by != generation for asked, _, by in self.answers)


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 20_000,
    writes: int = 200,
    repeats: Annotated[int, typer.Option(help="Upgrades, each cut over and rolled back.")] = 5,
) -> None:
    """Print the figures."""
    with worker_with_servers() as parts, ExitStack() as stack:
        register_versions(parts, _DIM)
        fill_gallery(parts, "g", items, _DIM)
        first, second = (stack.enter_context(api_process(parts, port)).client for port in _PORTS)
        stack.enter_context(worker_processes(parts, 1))

        seconds = [_seconds_until_found(first, second, number) for number in range(writes)]
        p50, p99 = np.percentile(np.array(seconds) * 1_000, [50, 99])

        table = Table(
            "switch", "the two first answers apart, ms", "old answers after it was answered for", title="Switches"
        )
        for number in range(repeats):
            upgrade = upgrade_until_ready(first, "g", "v2")
            for action, generation in (("cutover", upgrade["to_generation"]), ("rollback", upgrade["from_generation"])):
                apart, late = _switch(first, second, f"/v1/upgrades/{upgrade['id']}/{action}", generation)
                table.add_row(f"{action} {number + 1}", f"{apart * 1_000:.1f}", str(late))

    console = Console(width=120)
    console.print(
        f"A write is found in the other process {p50:.1f} ms after its answer (p50; p99 {p99:.1f} ms), {writes} writes"
    )
    console.print(table)
    console.print(f"{items:,} items of {_DIM}, two API processes and a worker; {machine()}")


def _seconds_until_found(first: httpx.Client, second: httpx.Client, number: int) -> float:
    """Import a vector through one process, and return for how long the other one does not find it."""
    vector = np.random.default_rng(number).standard_normal(_DIM).astype(np.float32) * _FAR
    values = {"embedding": [vector.tolist()], "side_information": [[0.0] * _DIM]}
    table = pa.table({"id": [f"written-{number}"], **values})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    query = {"vectors": [vector.tolist()], "k": 1}
    first.post("/v1/galleries/g/embeddings", content=sink.getvalue().to_pybytes()).raise_for_status()
    answered = time.perf_counter()
    while second.post(_PATH, json=query).json()["neighbors"][0][0]["id"] != f"written-{number}":
        pass
    return time.perf_counter() - answered


def _switch(first: httpx.Client, second: httpx.Client, path: str, generation: int) -> tuple[float, int]:
    """Switch while both are asked; return how far apart they were, in seconds, and how many answers came late."""
    ends = threading.Event()
    asked = [_Asked(), _Asked()]
    clients = [
        threading.Thread(target=_ask, args=(client, each, ends))
        for client, each in zip((first, second), asked, strict=True)
    ]
    for client in clients:
        client.start()
    time.sleep(0.5)
    with httpx.Client(base_url=first.base_url, timeout=60) as switching:
        switching.post(path).raise_for_status()
    answered = time.perf_counter()
    time.sleep(1.0)
    ends.set()
    for client in clients:
        client.join()
    moments = [each.first_by(generation) for each in asked]
    return max(moments) - min(moments), sum(each.late(answered, generation) for each in asked)


def _ask(client: httpx.Client, asked: _Asked, ends: threading.Event) -> None:
    query = {"vectors": [[0.0] * _DIM], "k": 1}
    while not ends.is_set():
        began = time.perf_counter()
        answer = client.post(_PATH, json=query).raise_for_status().json()
        asked.answers.append((began, time.perf_counter(), answer["generation"]))


if __name__ == "__main__":
    typer.run(run)
