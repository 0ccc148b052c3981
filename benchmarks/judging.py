"""How fast CMC and mAP of a gallery against itself are, beside what is usually written, and how much memory they take.

    python -m benchmarks.judging --items 10000
    python -m benchmarks.judging --items 50000 --repeats 3

The vectors are random around a centre per class; L2, each item's own row removed. The other ways judge as many queries
as memory or patience allows, and their seconds are scaled to all of them. The error is the largest of a query's average
precision, against the definition computed slowly: squared differences summed in float64, ties as `models.metrics` says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score

from benchmarks.setting import machine, median_and_range, peak_memory_of
from models.metrics import Labels, RetrievalPerQuery, Vectors, query_metrics

_MIB = 2**20
_SPREAD = 2.0  # of a class, in units of the distance between its centre's coordinates and zero
_MATRIX_DISTANCES = 100_000_000
_FEW_QUERIES = 200


@dataclass(frozen=True)
class _Way:
    name: str
    queries: int
    judge: Callable[[Vectors, Labels, int], RetrievalPerQuery]


def run(
    items: Annotated[int, typer.Option(help="Of the gallery, each of them a query too.")] = 10_000,
    dim: int = 128,
    classes: int = 100,
    repeats: int = 5,
) -> None:
    """Print the table; the ways take turns, so that a change of the machine's speed meets all of them."""
    vectors, labels = _gallery(items, dim, classes)
    few = min(items, max(1, _MATRIX_DISTANCES // items))
    ways = [
        _Way("models.metrics", items, _ours),
        _Way("numpy: argsort, query by query", few, _query_by_query),
        _Way("numpy: argsort of the whole matrix", few, _whole_matrix),
        _Way("scikit-learn, query by query", min(items, _FEW_QUERIES), _scikit_learn),
    ]

    _ours(vectors[:1000], labels[:1000], 1000)
    found, memory = peak_memory_of(lambda: _ours(vectors, labels, items))
    exact = _exact(vectors, labels, min(items, _FEW_QUERIES))
    errors = [_error(exact, found), *(_error(exact, way.judge(vectors, labels, len(exact))) for way in ways[1:])]

    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, measured in zip(ways, seconds, strict=True):
            measured.append(_seconds(way, vectors, labels) * items / way.queries)

    console = Console()
    console.print(_table(f"CMC and mAP of {items:,} queries in {items:,} items", ways, seconds, errors))
    console.print(
        f"{machine()}, {torch.get_num_threads()} threads; {dim} dimensions, {classes} classes, {repeats} repeats"
    )
    matrix = 4 * items**2 / _MIB
    console.print(
        f"memory while judging: {memory / _MIB:,.0f} MiB (a float32 matrix of all distances: {matrix:,.0f} MiB)"
    )


def _table(title: str, ways: list[_Way], seconds: list[list[float]], errors: list[float]) -> Table:
    columns = ("way", "queries", "seconds for all", "min to max", "x ours (budget: 20)", "min to max", "error")
    table = Table(*columns, title=title)
    for way, measured, error in zip(ways, seconds, errors, strict=True):
        times = [theirs / ours for theirs, ours in zip(measured, seconds[0], strict=True)]
        figures = (*median_and_range(measured, ".2f"), *median_and_range(times, ".1f"))
        table.add_row(way.name, f"{way.queries:,}", *figures, f"{error:.0e}")
    return table


def _gallery(items: int, dim: int, classes: int) -> tuple[Vectors, Labels]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, items)
    centres = generator.standard_normal((classes, dim), np.float32)
    return centres[labels] + np.float32(_SPREAD) * generator.standard_normal((items, dim), np.float32), labels


def _ours(vectors: Vectors, labels: Labels, queries: int) -> RetrievalPerQuery:
    return query_metrics(vectors[:queries], labels[:queries], vectors, labels, self_match=True)


def _query_by_query(vectors: Vectors, labels: Labels, queries: int) -> RetrievalPerQuery:
    ranks, average_precisions = [], []
    for query in range(queries):
        distances = np.linalg.norm(vectors - vectors[query], axis=1)
        order = np.argsort(distances)
        matches = labels[order[order != query]] == labels[query]
        precision = np.cumsum(matches) / np.arange(1, len(matches) + 1)
        ranks.append(np.argmax(matches))
        average_precisions.append(precision[matches].mean())
    return RetrievalPerQuery(np.array(ranks), np.array(average_precisions))


def _whole_matrix(vectors: Vectors, labels: Labels, queries: int) -> RetrievalPerQuery:
    distances = _distance_matrix(vectors, queries)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, :-1]
    matches = labels[order] == labels[:queries, None]
    precision = np.cumsum(matches, axis=1) / np.arange(1, matches.shape[1] + 1)
    return RetrievalPerQuery(np.argmax(matches, axis=1), (precision * matches).sum(axis=1) / matches.sum(axis=1))


def _scikit_learn(vectors: Vectors, labels: Labels, queries: int) -> RetrievalPerQuery:
    """As the paper's public code: a matrix of distances, then its function on each row."""
    distances = _distance_matrix(vectors, queries)
    ranks, average_precisions = [], []
    for query in range(queries):
        others = np.arange(len(vectors)) != query
        matches, row = (labels == labels[query])[others], distances[query, others]
        ranks.append(np.argmax(matches[np.argsort(row)]))
        average_precisions.append(average_precision_score(matches, -row))
    return RetrievalPerQuery(np.array(ranks), np.array(average_precisions))


def _distance_matrix(vectors: Vectors, queries: int) -> NDArray[np.float32]:
    squares: NDArray[np.float32] = np.square(vectors).sum(axis=1)
    squared = squares[:queries, None] + squares - 2 * vectors[:queries] @ vectors.T
    return np.sqrt(np.maximum(squared, 0))


def _exact(vectors: Vectors, labels: Labels, queries: int) -> NDArray[np.float64]:
    """Return the average precisions of the first queries, slowly."""
    exact = []
    for query in range(queries):
        others = np.arange(len(vectors)) != query
        distances = np.square(vectors[others] - vectors[query].astype(np.float64)).sum(axis=1).astype(np.float32)
        exact.append(average_precision_score((labels == labels[query])[others], -distances))
    return np.array(exact)


def _error(exact: NDArray[np.float64], found: RetrievalPerQuery) -> float:
    return float(np.abs(found.average_precisions[: len(exact)] - exact).max())


def _seconds(way: _Way, vectors: Vectors, labels: Labels) -> float:
    began = time.perf_counter()
    way.judge(vectors, labels, way.queries)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(run)
