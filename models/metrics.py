"""Retrieval metrics as the paper's code defines them, exact, in blocks of queries so that memory stays bounded; and how
far vectors are from those that they stand in for.

CMC top-k: a query scores 1 if any of its k nearest has its label. mAP@1.0: the mean over queries of average precision
over the whole ranked gallery, tied distances pooled, as scikit-learn's `average_precision_score`. Queries without a
positive are left out of both means. With `self_match`, query i and gallery item i are the same image, and that item is
removed from its ranking by its index. Throughout, query: (Q, D) float32 with labels (Q,), gallery: (N, D) with (N,).

A distance is a squared L2 distance, 1 - cosine, or the negative inner product, computed in float64 and rounded to
float32: equal vectors tie however their products were summed. Where float64 would rank by its own rounding, at L2
distances below a millionth of the query's norm and at cosine distances below 1e-12, the distance is 0.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.normalize import l2_normalize

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Metric = Literal["l2", "cosine", "ip"]
Rows = NDArray[np.int64]
_ROUNDING = 2.0**-40  # of a squared norm: 1000 times what a sum of 128 products of float64 loses


@dataclass(frozen=True)
class RetrievalMetrics:
    """CMC top-1 and top-5, and mAP@1.0, from 0 to 1."""

    cmc1: float
    cmc5: float
    map: float


@dataclass(frozen=True)
class RetrievalPerQuery:
    """What each query scores; the other metrics are means of these, and `models.statistics` compares them in pairs.

    first_match_ranks: (Q,) int64, how many items rank before the first positive, N where there is none; among equal
    distances the gallery's order decides. average_precisions: (Q,) float64, NaN where there is no positive.
    """

    first_match_ranks: NDArray[np.int64]
    average_precisions: NDArray[np.float64]


@dataclass(frozen=True)
class BlockSizes:
    """How much is computed at once; no metric depends on it."""

    distances: int = 8_000_000
    # What the processor's caches hold: more items at once, and numbers travel to memory; fewer queries, and items do.
    cpu_queries: int = 128
    cpu_items: int = 1024


def retrieval_metrics(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
) -> RetrievalMetrics:
    """Return CMC and mAP in one pass over the distances. Raises ValueError when no query has a positive."""
    found = query_metrics(query, query_labels, gallery, gallery_labels, self_match, metric, device)
    by_k = _cmc(found.first_match_ranks, len(gallery), (1, 5))
    return RetrievalMetrics(by_k[1], by_k[5], float(np.nanmean(found.average_precisions)))


def query_metrics(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
    sizes: BlockSizes = BlockSizes(),
) -> RetrievalPerQuery:
    """Return what each query scores. On the CPU, as many threads as torch would use share the queries.

    Raises ValueError for values that are not finite, vectors without a label each, and a self-match of unequal numbers.
    """
    if len(query) != len(query_labels) or len(gallery) != len(gallery_labels):
        raise ValueError("There must be one label for each vector.")
    if self_match and len(query) != len(gallery):
        raise ValueError("With self_match, the queries and the gallery are the same items.")
    scale = _scale(query, gallery)
    positives = _find_positives(query_labels, gallery_labels, self_match)
    tiles = _tiles(_item_factor(_on(gallery, scale, device), metric), sizes)
    found = RetrievalPerQuery(np.full(len(query), len(gallery)), np.full(len(query), np.nan))

    def judge(blocks: list[Rows]) -> None:
        room = _Room(max(map(len, blocks)), tiles)
        for rows in blocks:
            distances = room.distances(_query_factor(_on(query[rows], scale, device), metric))
            if metric != "ip":
                distances.clamp_(min=0)
            if self_match:
                distances[torch.arange(len(rows)), torch.from_numpy(rows)] = torch.inf
            scores = _judge(distances, room.ranked(distances), *positives.of(rows, device))
            found.first_match_ranks[rows], found.average_precisions[rows] = (column.cpu().numpy() for column in scores)

    spread(judge, _blocks(positives.others, len(gallery), device, sizes), device)
    return found


def cmc(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    ks: Sequence[int] = (1, 5),
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
) -> dict[int, float]:
    """Return CMC top-k by k. Raises ValueError when no query has a positive."""
    ranks = first_match_ranks(query, query_labels, gallery, gallery_labels, self_match, metric, device)
    return _cmc(ranks, len(gallery), ks)


def mean_average_precision(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
) -> float:
    """Return mAP@1.0. Raises ValueError when no query has a positive."""
    return retrieval_metrics(query, query_labels, gallery, gallery_labels, self_match, metric, device).map


def first_match_ranks(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Return (Q,) int64 `RetrievalPerQuery.first_match_ranks`: `ranks < k` are the hits that CMC top-k and flip rates
    count."""
    return query_metrics(query, query_labels, gallery, gallery_labels, self_match, metric, device).first_match_ranks


def gap_closed(old_old: float, new_h: float, new_new: float) -> float:
    """Return G = (new/h - old/old) / (new/new - old/old): 0 is no gain, 1 is all that re-encoding would give; NaN when
    re-encoding changes nothing."""
    gap = new_new - old_old
    return (new_h - old_old) / gap if gap else float("nan")


def negative_flip_rate(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Return the share of (Q,) queries that were hits before and are none after (Yan et al., CVPR 2021)."""
    return float((before & ~after).mean())


def positive_flip_rate(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Return the share of (Q,) queries that were no hits before and are after."""
    return negative_flip_rate(after, before)


def linear_cka(first: Vectors, second: Vectors) -> float:
    """Return the linear centred kernel alignment of (N, D1) and (N, D2) features of the same N images (Kornblith et
    al., ICML 2019, section 3); 0 when one of them is constant."""
    x = first - first.mean(axis=0, dtype=np.float64)
    y = second - second.mean(axis=0, dtype=np.float64)
    scale = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y) ** 2) / scale if scale else 0.0


def squared_errors(found: Vectors, expected: Vectors) -> Vectors:
    """(N, D), (N, D) -> (N,) squared Euclidean distances of rows, float32."""
    errors: Vectors = np.square(found - expected).sum(axis=1)
    return errors


def vector_errors(found: Vectors, expected: Vectors) -> dict[str, float]:
    """Return means over the rows of (N, D) vectors: of the squared error, of that of always answering the mean of
    `expected`, and of the cosine; a zero vector has cosine 0 with everything."""
    cosines = (l2_normalize(found) * l2_normalize(expected)).sum(axis=1)
    return {
        "mean_squared_error": float(np.square(found - expected, dtype=np.float64).mean()),
        "mean_predictor_error": float(np.square(expected - expected.mean(axis=0), dtype=np.float64).mean()),
        "mean_cosine": float(cosines.mean(dtype=np.float64)),
    }


@dataclass(frozen=True)
class _Positives:
    """Where each query's positives are: in `order`, which sorts the gallery by label, `counts` of them from `starts`.

    order: (N,), starts, counts: (Q,), others: (Q,), the counts without the query itself; all int64.
    """

    order: Rows
    starts: Rows
    counts: Rows
    others: Rows

    def of(self, rows: Rows, device: str) -> tuple[Tensor, Tensor]:
        """(b,) -> (b, P) int64 gallery positions, ascending, and (b, P) bool which of them are no padding."""
        counts = self.counts[rows, None]
        slots = np.arange(counts.max())
        positions = self.order[np.minimum(self.starts[rows, None] + slots, len(self.order) - 1)]
        return torch.from_numpy(positions).to(device), torch.from_numpy(slots < counts).to(device)


def _find_positives(query_labels: Labels, gallery_labels: Labels, self_match: bool) -> _Positives:
    order = np.argsort(gallery_labels, kind="stable")
    ordered = np.asarray(gallery_labels)[order]
    starts = np.searchsorted(ordered, query_labels, side="left")
    counts = np.searchsorted(ordered, query_labels, side="right") - starts
    others = counts - np.equal(query_labels, gallery_labels) if self_match else counts
    return _Positives(order, starts, counts, others)


def _blocks(positives: Rows, gallery_size: int, device: str, sizes: BlockSizes) -> list[Rows]:
    """Cut the queries that have positives into blocks; those with about as many share one, to pad each other little."""
    judged = np.flatnonzero(positives)
    judged = judged[np.argsort(positives[judged], kind="stable")]
    size = max(1, sizes.distances // max(1, gallery_size))
    if device == "cpu":
        size = min(size, sizes.cpu_queries)
    return [judged[start : start + size] for start in range(0, len(judged), size)]


def spread(judge: Callable[[list[Rows]], None], blocks: list[Rows], device: str) -> None:
    """Share the blocks among as many threads as torch would use, each of them computing with one; a GPU takes one."""
    threads = torch.get_num_threads()
    workers = min(len(blocks), threads if device == "cpu" else 1)
    try:
        with ThreadPoolExecutor(max(1, workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(judge, [blocks[worker::workers] for worker in range(workers)]))
    finally:
        torch.set_num_threads(threads)  # what a thread sets, threads that start later take over


class _Room:
    """Memory in which blocks of at most `queries` are computed one after another: fresh pages would cost as much again.

    tiles: the items' factors, (K, T) float64 each, N columns in all.
    """

    def __init__(self, queries: int, tiles: Sequence[Tensor]) -> None:
        self._tiles = tiles
        self._distances = tiles[0].new_empty(queries, sum(tile.shape[1] for tile in tiles), dtype=torch.float32)
        self._ranked = torch.empty_like(self._distances)
        self._product = tiles[0].new_empty(queries * tiles[0].shape[1])

    def distances(self, queries: Tensor) -> Tensor:
        """(b, K) float64 -> (b, N) float32, overwritten by the next call."""
        distances = self._distances[: len(queries)]
        for tile, place in zip(self._tiles, torch.split(distances, self._tiles[0].shape[1], dim=1), strict=True):
            place.copy_(torch.mm(queries, tile, out=self._product[: place.numel()].view(place.shape)))
        return distances

    def ranked(self, distances: Tensor) -> Tensor:
        """(b, N) -> its rows sorted, overwritten by the next call."""
        return _sort_rows(self._ranked[: len(distances)].copy_(distances))


def _scale(query: Vectors, gallery: Vectors) -> float:
    """Return the power of two that brings all values under 1: it changes no ranking, and squares stay in float32."""
    largest = float(np.max([np.abs(vectors).max(initial=0) for vectors in (query, gallery)]))
    if not math.isfinite(largest):
        raise ValueError("The vectors have values that are not finite.")
    return math.ldexp(1.0, -math.frexp(largest)[1])


def _on(vectors: Vectors, scale: float, device: str) -> Tensor:
    return torch.from_numpy(np.multiply(vectors, scale, dtype=np.float64)).to(device)


def _tiles(items: Tensor, sizes: BlockSizes) -> list[Tensor]:
    """(N, K) -> (K, T) each, in memory of its own."""
    size = sizes.cpu_items if items.device.type == "cpu" else max(1, len(items))
    return [tile.T.contiguous() for tile in torch.split(items, size)]


def _item_factor(items: Tensor, metric: Metric) -> Tensor:
    """(N, D) float64 -> (N, K): products of rows with those of `_query_factor` are distances."""
    if metric == "cosine":
        items = functional.normalize(items, dim=1)
    squares, ones = items.square().sum(dim=1, keepdim=True), items.new_ones(len(items), 1)
    columns = {"l2": [items, squares, ones], "cosine": [items, ones], "ip": [items]}[metric]
    return torch.cat(columns, dim=1)


def _query_factor(query: Tensor, metric: Metric) -> Tensor:
    """(b, D) float64 -> (b, K)."""
    if metric == "cosine":
        query = functional.normalize(query, dim=1)
    squares, ones = query.square().sum(dim=1, keepdim=True), query.new_ones(len(query), 1)
    nearest = 1 - _ROUNDING
    columns = {"l2": [-2 * query, ones, nearest * squares], "cosine": [-query, nearest * ones], "ip": [-query]}[metric]
    return torch.cat(columns, dim=1)


def _judge(distances: Tensor, ranked: Tensor, positions: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return a block's first-match ranks (b,) int64 and average precisions (b,) float64.

    distances: (b, N) float32, ranked: its rows sorted; positions: (b, P) of the positives, where `counted`.
    Average precision is the mean over the positives of the share of positives among all items at most as far.
    """
    unranked = torch.where(counted, distances.gather(1, positions), torch.inf)
    positives = _sort_rows(unranked.clone())
    items = torch.searchsorted(ranked, positives, right=True)
    matching = torch.searchsorted(positives, positives, right=True)
    precisions = torch.where(positives.isinf(), torch.nan, matching.double() / items).nanmean(dim=1)

    nearest = positives[:, :1].contiguous()
    ranks = torch.searchsorted(ranked, nearest).squeeze(1)
    rivals = (items[:, 0] - ranks > matching[:, 0]).nonzero().squeeze(1)  # others as near as the nearest positive
    if len(rivals):
        ranks[rivals] += _tied_before(distances[rivals], nearest[rivals], positions[rivals], unranked[rivals])
    return ranks, precisions


def _tied_before(distances: Tensor, nearest: Tensor, positions: Tensor, unranked: Tensor) -> Tensor:
    """(b, N), (b, 1), (b, P), (b, P) -> (b,) int64, how many items at the nearest positive's distance precede it."""
    count = distances.shape[1]
    first = torch.where(unranked == nearest, positions, count).min(dim=1, keepdim=True).values
    before = torch.arange(count, device=distances.device) < first
    return (before & (distances == nearest)).sum(dim=1)


def _sort_rows(rows: Tensor) -> Tensor:
    """Sort in place; on the CPU by numpy, whose vector instructions are many times as fast as torch's sort."""
    if rows.device.type == "cpu":
        rows.numpy().sort(axis=1)
        return rows
    return rows.copy_(rows.sort(dim=1).values)


def _cmc(ranks: NDArray[np.int64], gallery_size: int, ks: Sequence[int]) -> dict[int, float]:
    counted = ranks[ranks < gallery_size]
    if not len(counted):
        raise ValueError("No query has an item of its label in the gallery.")
    return {k: float((counted < k).mean()) for k in ks}
