"""Retrieval metrics as the paper's code defines them, computed in blocks of queries.

CMC top-k: a query scores 1 if any of its k nearest has its label. mAP@1.0: the mean over queries of average precision
over the whole ranked gallery, tied distances pooled; queries without a positive are left out of both means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Metric = Literal["l2", "cosine", "ip"]
_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class RetrievalMetrics:
    """`cmc` by k, and `mean_average_precision`, all from 0 to 1."""

    cmc: dict[int, float]
    mean_average_precision: float


def retrieval_metrics(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    *,
    ks: Sequence[int] = (1, 5),
    self_match: bool = False,
    metric: Metric = "l2",
    device: str = "cpu",
) -> RetrievalMetrics:
    """Return CMC and mAP of (Q, D) queries against an (N, D) gallery.

    With `self_match`, query i and gallery item i are the same image, and that item is removed from its ranking.
    """
    if self_match and len(queries) != len(gallery):
        raise ValueError("with self_match, queries and gallery are the same items")
    items = torch.from_numpy(np.ascontiguousarray(gallery, np.float32)).to(device)
    item_labels = torch.from_numpy(np.ascontiguousarray(gallery_labels, np.int64)).to(device)
    hits = {k: 0.0 for k in ks}
    precision_sum, counted = 0.0, 0
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + _BLOCK_QUERIES], np.float32)).to(device)
        labels = torch.from_numpy(np.ascontiguousarray(query_labels[start : start + _BLOCK_QUERIES])).to(device)
        distances = _distances(block, items, metric)  # (b, N)
        matches = labels[:, None] == item_labels[None, :]
        if self_match:
            rows = torch.arange(len(block), device=device)
            distances[rows, rows + start] = torch.inf
            matches[rows, rows + start] = False
        order = torch.argsort(distances, dim=1, stable=True)
        ranked = torch.gather(matches, 1, order)
        has_positive = ranked.any(dim=1)
        counted += int(has_positive.sum())
        for k in ks:
            hits[k] += float(ranked[has_positive, :k].any(dim=1).sum())
        sorted_distances = torch.gather(distances, 1, order)
        precision_sum += float(_average_precision(ranked[has_positive], sorted_distances[has_positive]).sum())
    if not counted:
        raise ValueError("no query has an item of its label in the gallery")
    return RetrievalMetrics({k: hits[k] / counted for k in ks}, precision_sum / counted)


def cmc(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    *,
    ks: Sequence[int] = (1, 5),
    self_match: bool = False,
    metric: Metric = "l2",
) -> dict[int, float]:
    """Return CMC top-k by k; see `retrieval_metrics`."""
    found = retrieval_metrics(
        queries, query_labels, gallery, gallery_labels, ks=ks, self_match=self_match, metric=metric
    )
    return found.cmc


def gap_closed(old_old: float, new_h: float, new_new: float) -> float:
    """Return G = (new/h - old/old) / (new/new - old/old): 0 is no gain, 1 is all that re-encoding would give; NaN when
    re-encoding gains nothing."""
    gap = new_new - old_old
    return (new_h - old_old) / gap if gap else float("nan")


def flip_rates(before_hits: NDArray[np.bool_], after_hits: NDArray[np.bool_]) -> tuple[float, float]:
    """Return (negative, positive) flip rate: the share of (Q,) queries that were right and are wrong now, and the
    reverse."""
    return float((before_hits & ~after_hits).mean()), float((~before_hits & after_hits).mean())


def linear_cka(first: Vectors, second: Vectors) -> float:
    """Return the linear centred kernel alignment of (N, D1) and (N, D2) features of the same N images.

    Kornblith et al., ICML 2019, equation 4 in its feature form.
    """
    x = first.astype(np.float64) - first.mean(axis=0)
    y = second.astype(np.float64) - second.mean(axis=0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _distances(queries: Tensor, items: Tensor, metric: Metric) -> Tensor:
    if metric == "l2":
        return torch.cdist(queries, items)
    if metric == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=1)
        items = torch.nn.functional.normalize(items, dim=1)
    return -(queries @ items.T)


def _average_precision(ranked: Tensor, distances: Tensor) -> Tensor:
    """Return (b,) average precision of (b, N) ranked matches; within a tie, every item counts at the tie's end."""
    positives = ranked.cumsum(dim=1)
    positions = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    # The last position that has the same distance, for every position: ties are one step of the curve.
    is_end = torch.ones_like(ranked)
    is_end[:, :-1] = distances[:, 1:] != distances[:, :-1]
    ends = torch.where(is_end, positions - 1, ranked.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    precision = torch.gather(positives, 1, ends).double() / (ends + 1)
    return (precision * ranked).sum(dim=1) / positives[:, -1]
