"""Where the time of a query by one vector goes: the same queries asked of each layer, each of which holds the ones
before it; and how many queries a second one process answers to some clients at the same time.

    python -m benchmarks.querying --items 100000 --items 1000000

Vectors are random, 128 dimensions, 10 neighbours; an item has a label and some metadata. Queries come one after the
other, the layers in turns, and a figure is the median of all queries of a layer. The index is the service's own graph,
in this process; over HTTP it is another one's. The clients are a process of their own on the same cores, each with one
connection, and what the API process takes of a processor for an answer is read from the system.
"""

import asyncio
import http.client
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import faiss
import numpy as np
import typer
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from starlette.types import Message

from benchmarks.closed_loop import Load, ask, load_process
from benchmarks.processes import api_process
from benchmarks.setting import fill_gallery, machine, register_versions, vacuum, worker_with_servers
from service.api.json_bodies import parse_json
from service.api.search import VectorsQuery, search_by_vectors
from service.app import create_app
from service.domain.gallery.galleries import find_serving
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.builds import build_generation_index
from service.domain.search.answers import Query
from service.tables import Gallery
from workers.app import WorkerParts

if TYPE_CHECKING:
    from service.api.dependencies import Parts

_DIM, _K, _PORT = 128, 10, 18_526
_PATH = "/v1/galleries/g/search/vectors"
_AT_ONCE = 50  # queries of a layer before it is the next one's turn

Layers = dict[str, Callable[[bytes], object]]


def run(
    items: Annotated[list[int], typer.Option(help="Sizes of the gallery.")] = [100_000],  # noqa: B006 - typer's way
    queries: Annotated[int, typer.Option(help="How many are asked of each layer.")] = 2_000,
    clients: Annotated[list[int], typer.Option(help="How many ask at the same time.")] = [1, 8, 64],  # noqa: B006 - typer's way
    seconds: Annotated[float, typer.Option(help="How long so many clients ask.")] = 5.0,
) -> None:
    """Print, of each size, what a query takes at each layer, and what the layer adds to the one before."""
    faiss.omp_set_num_threads(1)
    for size in items:
        with worker_with_servers(trust_torchscript=False, flat_below_rows=min(50_000, size)) as parts:
            _fill(parts, size)
            with _layers(parts) as layers, api_process(parts, _PORT):
                layers["over HTTP"] = _over_http()
                milliseconds = _in_turns(layers, queries)
            with api_process(parts, _PORT) as api:
                answered = {count: _asked_by(api.pid, count, seconds) for count in clients}
        _print(size, queries, milliseconds)
        _print_rates(answered)


def _fill(parts: WorkerParts, size: int) -> None:
    register_versions(parts, _DIM)
    fill_gallery(parts, "g", size, _DIM)
    with parts.database.session_scope() as session:
        session.execute(
            text(
                "UPDATE items SET label = 'class ' || id % 100, metadata = jsonb_build_object("
                "'title', 'Photograph ' || id, 'year', 2000 + id % 25, 'tags', array['a', 'b'])"
            )
        )
        gallery = session.query(Gallery).one()
    vacuum(parts)
    assert gallery.active_generation_id is not None
    build_generation_index(parts.database, parts.engine, GenerationKey(gallery.id, gallery.active_generation_id))
    vacuum(parts)


@contextmanager
def _layers(worker: WorkerParts) -> Iterator[Layers]:
    """The layers within this process, of an application that runs in it."""
    app = create_app(worker.settings)
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        parts: Parts = app.state.parts
        while not parts.replicas.is_loaded:
            time.sleep(0.05)
        serving = parts.search._serving("g")
        served = parts.replicas.active(serving.gallery_id, serving.active_generation_id)

        def index(body: bytes) -> object:
            return served.index.search(np.asarray(json.loads(body)["vectors"], np.float32), _K)

        def look_up(body: bytes) -> object:
            find_serving(parts.database, "g")
            return index(body)

        def searched(body: bytes) -> object:
            return parts.search.by_vectors("g", json.loads(body)["vectors"], Query(_K))

        def endpoint(body: bytes) -> object:
            return runner.run(search_by_vectors("g", VectorsQuery.model_validate(parse_json(body)), parts))

        try:
            yield {
                "index in process": index,
                "with the look-up of the serving pair": look_up,
                "search: with what is said of items": searched,
                "endpoint: with a thread, and JSON read, checked and written": endpoint,
                "application: with its middleware and routes": lambda body: runner.run(_through(app, body)),
            }
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


async def _through(app: FastAPI, body: bytes) -> None:
    """Have the application answer one request, without a socket."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": _PATH, "raw_path": _PATH.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1), "state": {},
    }  # fmt: skip
    incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return incoming.pop() if incoming else await asyncio.Future()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    await app(scope, receive, send)


def _over_http() -> Callable[[bytes], object]:
    connection = http.client.HTTPConnection("127.0.0.1", _PORT)

    def asked(body: bytes) -> object:
        connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content

    return asked


def _in_turns(layers: Layers, queries: int) -> dict[str, list[float]]:
    """Return the milliseconds of each query of each layer; the first turn does not count."""
    bodies = _bodies()
    milliseconds: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(1 + queries // _AT_ONCE):
        for name, layer in layers.items():
            for body in bodies:
                began = time.perf_counter()
                layer(body)
                if turn > 0:
                    milliseconds[name].append((time.perf_counter() - began) * 1_000)
    return milliseconds


def _bodies() -> list[bytes]:
    vectors = np.random.default_rng(7).standard_normal((_AT_ONCE, 1, _DIM), np.float32)
    return [json.dumps({"vectors": vector.tolist(), "k": _K}).encode() for vector in vectors]


def _asked_by(pid: int, clients: int, seconds: float) -> tuple[float, float, float]:
    """Return answers a second, their median in milliseconds, and milliseconds of the API's processor for each."""
    load = Load(_PORT, _PATH, clients, 0.2 * seconds, seconds, "application/json")
    with load_process(_bodies()) as process:
        process.submit(ask, replace(load, seconds=0.5)).result()  # items are described, connections are there
        before = _processor_milliseconds(pid)
        answered = process.submit(ask, load).result()
    if answered.failures or not answered.milliseconds:
        raise RuntimeError(f"{answered.failures} of {len(answered.milliseconds)} queries failed")
    rate = len(answered.milliseconds) / seconds
    busy = (_processor_milliseconds(pid) - before) / (1.2 * seconds)
    return rate, statistics.median(answered.milliseconds), busy / rate


def _processor_milliseconds(pid: int) -> float:
    """Return what a process has taken of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000 / os.sysconf("SC_CLK_TCK")


def _print_rates(answered: dict[int, tuple[float, float, float]]) -> None:
    table = Table("clients", "queries/s", "p50 ms", "processor ms of a query", title="one API process, over HTTP")
    for clients, (rate, p50, busy) in answered.items():
        table.add_row(str(clients), f"{rate:,.0f}", f"{p50:.2f}", f"{busy:.2f}")
    Console(width=120).print(table)


def _print(size: int, queries: int, milliseconds: dict[str, list[float]]) -> None:
    table = Table("layer", "p50 ms", "adds ms", "p99 ms", title=f"{size:,} items of {_DIM}, k = {_K}")
    before = 0.0
    for name, values in milliseconds.items():
        p50 = statistics.median(values)
        table.add_row(name, f"{p50:.3f}", f"{p50 - before:+.3f}", f"{np.percentile(values, 99):.3f}")
        before = p50
    console = Console(width=120)
    console.print(table)
    console.print(f"{queries:,} queries of each layer, one at a time, after 50 that do not count; {machine()}")


if __name__ == "__main__":
    typer.run(run)
