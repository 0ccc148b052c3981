"""Retrieval metrics as the paper's code defines them, computed in blocks of queries.

CMC top-k: a query scores 1 if any of its k nearest has its label. mAP@1.0: the mean over queries of average precision
over the whole ranked gallery, tied distances pooled, as scikit-learn's `average_precision_score`. Queries without a
positive are left out of both means. With `self_match`, query i and gallery item i are the same image, and that item is
removed from its ranking by its index. Throughout, query: (Q, D) float32 with labels (Q,), gallery: (N, D) with (N,).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Metric = Literal["l2", "cosine", "ip"]
_BLOCK_DISTANCES = 8_000_000


@dataclass(frozen=True)
class RetrievalMetrics:
    """CMC top-1 and top-5, and mAP@1.0, from 0 to 1."""

    cmc1: float
    cmc5: float
    map: float


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
    ranks, precisions = [], []
    for distances, matches in _blocks(query, query_labels, gallery, gallery_labels, self_match, metric, device):
        ranks.append(_first_match_rank(distances, matches))
        precisions.append(_average_precision(distances, matches))
    by_k = _cmc(torch.cat(ranks).numpy(), len(gallery), (1, 5))
    return RetrievalMetrics(by_k[1], by_k[5], float(torch.cat(precisions).nanmean()))


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
    """Return (Q,) how many items rank before a query's first positive, N where there is none; among equal distances the
    gallery's order decides. `ranks < k` are the hits that CMC top-k and the flip rates count."""
    blocks = _blocks(query, query_labels, gallery, gallery_labels, self_match, metric, device)
    return np.concatenate([_first_match_rank(*block).numpy() for block in blocks] or [np.empty(0, np.int64)])


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


def _blocks(
    query: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    self_match: bool,
    metric: Metric,
    device: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield distances (b, N) float32 and matches (b, N) bool of blocks of b queries; a removed item is at infinity."""
    if self_match and len(query) != len(gallery):
        raise ValueError("With self_match, the queries and the gallery are the same items.")
    if not (np.isfinite(query).all() and np.isfinite(gallery).all()):
        raise ValueError("The vectors have values that are not finite.")
    items = _on(gallery, device)
    item_labels = torch.from_numpy(np.array(gallery_labels)).to(device)
    size = max(1, _BLOCK_DISTANCES // max(1, len(gallery)))
    for start in range(0, len(query), size):
        distances = _distances(_on(query[start : start + size], device), items, metric)
        labels = torch.from_numpy(np.array(query_labels[start : start + size])).to(device)
        matches = labels[:, None] == item_labels[None, :]
        if self_match:
            rows = torch.arange(len(labels), device=device)
            distances[rows, rows + start] = torch.inf
            matches[rows, rows + start] = False
        yield distances, matches


def _on(vectors: Vectors, device: str) -> Tensor:
    return torch.from_numpy(np.array(vectors, np.float64)).to(device)


def _distances(query: Tensor, items: Tensor, metric: Metric) -> Tensor:
    """(b, D), (N, D) float64 -> (b, N), rounded to float32: equal vectors tie however their products were summed."""
    if metric == "cosine":
        query, items = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (query, items))
    distances = -(query @ items.T)
    if metric == "l2":
        squared = 2 * distances + items.square().sum(dim=1) + query.square().sum(dim=1, keepdim=True)
        distances = squared.clamp_(min=0).sqrt_()
    return distances.float()


def _first_match_rank(distances: Tensor, matches: Tensor) -> Tensor:
    """(b, N), (b, N) -> (b,) int64 on the CPU."""
    count = distances.shape[1]
    nearest, position = torch.where(matches, distances, torch.inf).min(dim=1, keepdim=True)
    position = torch.where(matches & (distances == nearest), torch.arange(count, device=distances.device), count)
    first = position.min(dim=1, keepdim=True).values
    before = torch.arange(count, device=distances.device) < first
    ranks = ((distances < nearest) | (before & (distances == nearest))).sum(dim=1)
    return torch.where(matches.any(dim=1), ranks, count).cpu()


def _average_precision(distances: Tensor, matches: Tensor) -> Tensor:
    """(b, N), (b, N) -> (b,) float64 on the CPU, NaN where there is no match: the mean over a query's positives of the
    share of positives among all items at most as far."""
    ranked = distances.sort(dim=1).values
    most = int(matches.sum(dim=1).max())
    positives = torch.where(matches, distances, torch.inf).sort(dim=1).values[:, :most].contiguous()
    matching = torch.searchsorted(positives, positives, right=True).double()
    precision = matching / torch.searchsorted(ranked, positives, right=True)
    return torch.where(positives.isinf(), torch.nan, precision).nanmean(dim=1).cpu()


def _cmc(ranks: NDArray[np.int64], gallery_size: int, ks: Sequence[int]) -> dict[int, float]:
    counted = ranks[ranks < gallery_size]
    if not len(counted):
        raise ValueError("No query has an item of its label in the gallery.")
    return {k: float((counted < k).mean()) for k in ks}
