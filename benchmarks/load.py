"""Queries at a constant rate over HTTP through a whole upgrade: latencies, failures, and answers of two generations, in
each of its phases; and the memory of API and worker. Writes docs/load.md and docs/load.png.

    python -m benchmarks.load --items 100000 --rate 50

PostgreSQL, an API process and a worker process run as `gallery-upgrade serve` starts them; the clients are a process of
their own. Most queries are by vectors, held out and the same in both spaces, and name the version that they are of; the
others are by images. Every answer is checked: it must be of the generation that it names, every distance in it too.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.constant_rate import Clients, Load, Reply
from benchmarks.load_report import QUIET, TRANSFORMING, WARM_UP, Phase, Space, draw, judge, phases_of, table, verdicts
from benchmarks.processes import (
    Api,
    MemoryTrace,
    api_process,
    state_times,
    upgrade_until_ready,
    worker_processes,
)
from benchmarks.setting import (
    Vectors,
    commit,
    import_vectors,
    machine,
    paper_sized_transformation,
    random_image,
    register_versions,
    vacuum,
    worker_with_servers,
)
from benchmarks.vectors import DIM, Corpus, exact_nearest, make_corpus
from service.domain.gallery.current_rows import read_current_rows
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import get_stored_generation
from service.domain.indexes.builds import build_generation_index
from service.domain.upgrade_state import State
from workers.app import WorkerParts

_PORT = 18_519
_GALLERY = "asked"
_IMAGES = 20
_SAMPLE_SECONDS = 0.5
_WARM_UP_SECONDS = 5.0
_SWITCH_SECONDS = 5.0  # what belongs to a cutover or rollback, from its request on
_PREVIEW_EVERY_SECONDS = 1.0

_INTRODUCTION = """# Load through an upgrade

{items:,} vectors of 128 dimensions are upgraded at speed {speed:g} while {clients} clients, in a process of their own,
ask {rate:g} queries a second (`python -m benchmarks.load`), one in {image_every} by an image, the others by a vector
that names its model version. One API process answers; one worker transforms the gallery and builds the new index; then
it is cut over, and rolled back. Everything shares the machine's cores.

{source}

A query's latency is counted from when it was due. *Refused by name*: the vector was of the version that did not serve
any more; the client asked again with the other one. *Mixed*: an answer whose version, generation and distances are not
all of one generation; every answer was checked. *Nearest found*: vector queries whose exact nearest item came first (a
graph may miss it). Memory is the most that was resident. In the phase *ready* the next generation is asked too, once a
second.

"""


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 100_000,
    rate: Annotated[float, typer.Option(help="Queries per second.")] = 50.0,
    clients: Annotated[int, typer.Option(help="Connections that ask in turn.")] = 4,
    image_every: Annotated[int, typer.Option(help="Every so-manieth query is by an image.")] = 10,
    speed: Annotated[float, typer.Option(help="Share of the time that the worker works on the upgrade.")] = 1.0,
    quiet_seconds: float = 30.0,
    hold_seconds: Annotated[float, typer.Option(help="While ready, after the cutover, after the rollback.")] = 20.0,
    paper: Annotated[Path, typer.Option(help="Where benchmarks.paper keeps its networks.")] = Path("data/paper"),
    images: Annotated[Path, typer.Option(help="What it read.")] = Path("../shared/data/cifar100"),
    page: Annotated[Path, typer.Option(help="The page to write, and beside it the plot.")] = Path("docs/load.md"),
) -> None:
    """Run one upgrade under load, and write the page."""
    corpus = make_corpus(items, 200, paper, images)
    # In a trial with few rows, too, the index of a large gallery.
    with worker_with_servers(flat_below_rows=min(50_000, items)) as parts:
        _fill(parts, corpus)
        queries = {"v1": corpus.queries, "v2": _transformed(corpus.queries)}
        vectors = {version: array.tolist() for version, array in queries.items()}
        files = [random_image(seed) for seed in range(_IMAGES)]

        load = Load(f"http://127.0.0.1:{_PORT}", _GALLERY, vectors, files, image_every, rate, clients)
        with (
            api_process(parts, _PORT) as api,
            worker_processes(parts, 1) as workers,
            MemoryTrace({"api": [api.pid], "worker": workers}, _SAMPLE_SECONDS) as memory,
            Clients(load) as asking,
        ):
            phases, generations, next_rows = _drive(parts, api, vectors["v2"][0], speed, quiet_seconds, hold_seconds)
            replies = asking.stop()

    spaces = {
        version: Space(version, generation, rows, queries[version], exact_nearest(rows, queries[version], 1)[:, 0])
        for version, generation, rows in zip(("v1", "v2"), generations, (corpus.gallery, next_rows), strict=True)
    }
    introduction = _INTRODUCTION.format(
        items=items, speed=speed, clients=clients, rate=rate, image_every=image_every, source=corpus.source
    )
    _write(page, introduction, replies, phases, spaces, memory)


def _fill(parts: WorkerParts, corpus: Corpus) -> None:
    """Make the gallery under v1, with an index file."""
    register_versions(parts, DIM)
    stored = import_vectors(parts, _GALLERY, corpus.gallery, corpus.gallery)
    vacuum(parts)
    build_generation_index(parts.database, parts.engine, stored.key)


def _transformed(vectors: Vectors) -> Vectors:
    """Return what h, as `register_versions` registers it, makes of (N, D) embeddings that are their own ψ."""
    h = paper_sized_transformation(DIM, seed=0)
    with torch.inference_mode():
        transformed: Vectors = h(torch.from_numpy(vectors), torch.from_numpy(vectors)).numpy()
    return transformed


def _drive(
    parts: WorkerParts, api: Api, next_vector: list[float], speed: float, quiet_seconds: float, hold_seconds: float
) -> tuple[list[Phase], tuple[int, int], Vectors]:
    """Upgrade, cut over and roll back; return the phases, the ids of the old and the new generation, and the new one's
    rows."""
    starts: list[tuple[str, float]] = []

    def phase(name: str, seconds: float, action: Callable[[], Any] = lambda: None) -> None:
        starts.append((name, time.time()))
        action()
        time.sleep(max(0.0, starts[-1][1] + seconds - time.time()))

    def act(name: str) -> Callable[[], Any]:
        return lambda: api.client.post(f"/v1/upgrades/{upgrade['id']}/{name}").raise_for_status()

    phase(WARM_UP, _WARM_UP_SECONDS)
    phase(QUIET, quiet_seconds)
    starts.append((TRANSFORMING, time.time()))
    upgrade = upgrade_until_ready(api.client, _GALLERY, "v2", speed)
    at = state_times(parts, upgrade["id"])
    starts += [(state, at[state]) for state in (State.INDEXING, State.EVALUATING, State.READY)]
    next_rows = _rows(parts, upgrade["to_generation"])
    _preview(api, next_vector, hold_seconds)
    phase("cutover", _SWITCH_SECONDS, act("cutover"))
    phase("after", hold_seconds)
    phase("rollback", _SWITCH_SECONDS, act("rollback"))
    phase("rolled back", hold_seconds)
    generations = (upgrade["from_generation"], upgrade["to_generation"])
    return phases_of(starts, time.time()), generations, next_rows


def _rows(parts: WorkerParts, generation_id: int) -> Vectors:
    """Return a generation's embeddings (N, D) float32 by item id, which is the order of import."""
    with parts.database.session_scope() as session:
        stored = get_stored_generation(session, get_gallery(session, _GALLERY).id, generation_id)
        chunks = list(read_current_rows(session, stored, 16_384))
    ids = np.concatenate([rows.item_id for rows in chunks])
    embeddings = np.concatenate([rows.embedding for rows in chunks])
    return embeddings[np.argsort(ids)].astype(np.float32)


def _preview(api: Api, vector: list[float], seconds: float) -> None:
    """Ask the next generation, as its operator would."""
    ends = time.time() + seconds
    body = {"vectors": [vector], "model_version": "v2"}
    while time.time() < ends:
        api.client.post(f"/v1/galleries/{_GALLERY}/search/vectors?generation=next", json=body).raise_for_status()
        time.sleep(_PREVIEW_EVERY_SECONDS)


def _write(
    page: Path,
    introduction: str,
    replies: list[Reply],
    phases: list[Phase],
    spaces: dict[str, Space],
    memory: MemoryTrace,
) -> None:
    results = judge(replies, phases, spaces)
    draw(replies, phases, memory, page.with_suffix(".png"))
    lines = "".join(f"- {line}\n" for line in verdicts(results))
    failures = "".join(f"- failed: {reason}\n" for reason in sorted({r.failure for r in replies if r.failure}))
    plot = f"![Latencies and memory]({page.with_suffix('.png').name})\n"
    made_on = f"Made on commit {commit()}, {machine()}.\n"
    page.write_text("\n".join([introduction + table(results, memory), lines + failures, plot, made_on]))
    print(page.read_text(), flush=True)


if __name__ == "__main__":
    typer.run(run)
