"""Search by FAISS itself, by the service's index in process, by the service over HTTP, by pgvector and by Qdrant Edge,
in one run: recall@10 against exact search, queries/s, latencies, and what building and keeping the index costs.

    python -m benchmarks.search --items 100000
    python -m benchmarks.search --items 1000000 --without pgvector

Every size's results are kept in `--folder`; docs/search.md and docs/search.png are made from all that are there. After
everything is built, all engines are asked in turn, `--repeats` times.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.engines import BATCH, ENGINES, GALLERY, Answered, Asked, Engine, K, NotMeasured, Setting
from benchmarks.search_page import write_page
from benchmarks.setting import commit, import_vectors, machine, register_versions, worker_with_servers
from benchmarks.vectors import DIM, Corpus, exact_nearest, make_corpus, recall
from service.index.protocol import Ids

_LEAST_RECALL = 0.99
_LEAST_RATE = 0.9


@dataclass
class Row:
    """One engine at one setting; `batch` and `single` are queries/s, one of each per repeat."""

    engine: str
    setting: str
    build_seconds: float
    bytes_per_vector: float
    recall: float = 0.0
    single: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass
class _Measured:
    row: Row
    found: Ids
    seconds: list[float]


def run(
    items: Annotated[list[int] | None, typer.Option(help="Sizes of the gallery.")] = None,
    queries: Annotated[int, typer.Option(help="Queries that are not in the gallery.")] = 1_000,
    without: Annotated[list[str] | None, typer.Option(help=f"Engines to leave out: {', '.join(ENGINES)}.")] = None,
    repeats: int = 3,
    seconds: Annotated[float, typer.Option(help="Of batches, and of single queries, each time.")] = 3.0,
    build_limit_seconds: Annotated[float, typer.Option(help="Of pgvector and Qdrant, each.")] = 3_600.0,
    paper: Annotated[Path, typer.Option(help="Where benchmarks.paper keeps its networks.")] = Path("data/paper"),
    images: Annotated[Path, typer.Option(help="What it read.")] = Path("../shared/data/cifar100"),
    folder: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("data/search"),
    page: Annotated[Path, typer.Option(help="The page to write, and beside it the plot.")] = Path("docs/search.md"),
) -> None:
    """Measure each size, and write the page."""
    unknown = set(without or []) - set(ENGINES)
    if unknown:
        raise typer.BadParameter(f"no such engine: {', '.join(sorted(unknown))}")
    folder.mkdir(parents=True, exist_ok=True)
    for size in items or [100_000]:
        corpus = make_corpus(size, queries, paper, images)
        print(f"{size:,}: {corpus.source}", flush=True)
        result = _measure(corpus, without or [], repeats, seconds, build_limit_seconds)
        (folder / f"{size}.json").write_text(json.dumps(result, indent=2))
        write_page(folder, page)
        print(page.read_text(), flush=True)


def _measure(
    corpus: Corpus, without: Sequence[str], repeats: int, seconds: float, build_limit_seconds: float
) -> dict[str, Any]:
    """Return what is kept of one size."""
    began = time.monotonic()
    true = exact_nearest(corpus.gallery, corpus.queries, K)
    missing: list[str] = []
    with ExitStack() as stack:
        # In a trial with few rows, too, the index of a large gallery.
        parts = stack.enter_context(worker_with_servers(flat_below_rows=min(50_000, len(corpus.gallery))))
        register_versions(parts, DIM)
        stored = import_vectors(parts, GALLERY, corpus.gallery, corpus.gallery)
        setting = Setting(
            parts, corpus.gallery, corpus.sample_queries, stored, build_limit_seconds, len(os.sched_getaffinity(0))
        )

        engines: list[Engine] = []
        for name, make in ENGINES.items():
            if name in without:
                missing.append(f"{name}: left out by --without")
                continue
            try:
                engines += stack.enter_context(make(setting))
                print(f"{engines[-1].name}: built in {engines[-1].build_seconds:.1f} s", flush=True)
            except NotMeasured as reason:
                missing.append(f"{name}: {reason}: skipped")
                print(missing[-1], flush=True)

        measured = _in_turn(engines, Asked(corpus.queries, seconds), true, len(corpus.gallery), repeats)

    return {
        "items": len(corpus.gallery),
        "queries": len(corpus.queries),
        "repeats": repeats,
        "source": corpus.source,
        "made_on": f"commit {commit()}, {machine()}",
        "minutes": (time.monotonic() - began) / 60,
        "missing": missing,
        "rows": [asdict(one.row) for one in measured],
        "budgets": _budgets(measured),
    }


def _in_turn(engines: Sequence[Engine], asked: Asked, true: Ids, items: int, repeats: int) -> list[_Measured]:
    measured: dict[tuple[str, str], _Measured] = {}
    for repeat in range(repeats):
        for engine in engines:
            for setting in engine.settings:
                answered = engine.ask(setting, asked)
                row = Row(engine.name, setting, engine.build_seconds, engine.index_bytes / items)
                one = measured.setdefault((engine.name, setting), _Measured(row, answered.found, []))
                _record(one, answered, true)
        print(f"repeat {repeat + 1} of {repeats}", flush=True)
    return list(measured.values())


def _record(one: _Measured, answered: Answered, true: Ids) -> None:
    one.seconds += answered.single
    one.row.recall = recall(answered.found, true)
    one.row.batch.append(answered.batch)
    one.row.single.append(len(answered.single) / sum(answered.single))
    one.row.p50_ms, one.row.p99_ms = (1_000 * float(np.percentile(one.seconds, share)) for share in (50, 99))


def _budgets(measured: Sequence[_Measured]) -> list[str]:
    """Compare the service's index with the same FAISS index at the setting that gives the same answers."""
    lines = []
    for ours in measured:
        name = ours.row.engine
        if not name.startswith("FaissIndex "):
            continue
        direct = [one for one in measured if one.row.engine == name.replace("FaissIndex", "FAISS")]
        same = max(direct, key=_agreement(ours))
        rate = statistics.median(a / b for a, b in zip(ours.row.batch, same.row.batch, strict=True))
        lines.append(
            f"{name}: recall@10 {ours.row.recall:.4f} (budget {_LEAST_RECALL}:"
            f" {_verdict(ours.row.recall >= _LEAST_RECALL)}); {rate:.2f} of the queries/s, in batches of {BATCH}, of"
            f" {same.row.engine} at {same.row.setting}, which gives {_agreement(ours)(same):.1%} of its answers (budget"
            f" {_LEAST_RATE}: {_verdict(rate >= _LEAST_RATE)})"
        )
    return lines + _added_by_http(measured)


def _agreement(ours: _Measured) -> Callable[[_Measured], float]:
    return lambda other: recall(other.found, ours.found)


def _added_by_http(measured: Sequence[_Measured]) -> list[str]:
    """Say what HTTP and the rows from PostgreSQL add to a search of the index."""
    lines = []
    for service in (one for one in measured if one.row.engine.startswith("service")):
        kind = service.row.engine.split(", ")[1]
        for ours in (one for one in measured if one.row.engine == f"FaissIndex {kind}"):
            added = service.row.p50_ms - ours.row.p50_ms
            lines.append(f"A query by one vector over HTTP takes {added:.2f} ms more at p50 than FaissIndex {kind}.")
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


if __name__ == "__main__":
    typer.run(run)
