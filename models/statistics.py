"""Whether a difference between two transformations is more than chance, over the same queries judged with both; and
whether the errors that h expects are those that it makes.

`before` and `after` come from `models.metrics.query_metrics`: (Q,) average precisions, or hits (`ranks < k`), of the
same queries in the same order.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class DifferenceInterval:
    """The mean of `after - before`, and between which bounds it is with the confidence asked for."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class FlipTest:
    """lost, gained: the queries that were hits only before, only after. p_value: how likely so uneven a split of them
    is when each flip is as likely to be a gain as a loss."""

    lost: int
    gained: int
    p_value: float


@dataclass(frozen=True)
class Reliability:
    """Expected against true errors: `rank_correlation` is Spearman's over items, -1 to 1, NaN where either is constant;
    `expected` and `true` are means over groups of about equally many items, from the least expected error on."""

    rank_correlation: float
    expected: tuple[float, ...]
    true: tuple[float, ...]


def reliability(expected: NDArray[np.float32], true: NDArray[np.float32], groups: int = 10) -> Reliability:
    """Compare the errors that are expected of (N,) items with those that were made: the reliability diagram of
    calibration (DeGroot and Fienberg, The Statistician, 1983), as a table. Fewer items than groups make fewer groups.
    Raises ValueError without items."""
    if not len(expected):
        raise ValueError("There is no item to compare.")
    order = np.argsort(expected, kind="stable")
    parts = np.array_split(order, min(groups, len(order)))
    means = [tuple(float(values[part].mean(dtype=np.float64)) for part in parts) for values in (expected, true)]
    return Reliability(_rank_correlation(expected, true), means[0], means[1])


def _rank_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    ranks = [_mean_ranks(values) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N,) ranks; equals share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return ranks


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    draws_at_once: int = 4_000_000,
    clusters: ArrayLike | None = None,
) -> DifferenceInterval:
    """Return the mean of (Q,) differences with its bootstrap percentile interval (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, section 13.3): queries are drawn with replacement, each with both of its scores.

    With `clusters`, (Q,) numbers such as labels, whole clusters are drawn (the cluster bootstrap: Field and Welsh,
    JRSS B, 2007): queries of one class gain and lose together, and do not count as so many independent ones.
    Queries that are NaN in both, having no positive, are left out. Memory holds `draws_at_once`, on which nothing else
    depends. Raises ValueError for scores of unequal number, for a query that is NaN in one alone, and when none is
    left.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    differences = _differences(before, after)
    # What is drawn: queries, each a sum over one, or clusters.
    sums: NDArray[np.float64] = differences
    sizes: NDArray[np.int64] = np.ones(len(differences), np.int64)
    if clusters is not None:
        _, cluster = np.unique(np.asarray(clusters)[~np.isnan(before)], return_inverse=True)
        sums, sizes = np.bincount(cluster, differences).astype(np.float64), np.bincount(cluster)
    generator = np.random.default_rng(seed)
    count = len(sums)
    at_once = max(1, draws_at_once // count)
    means = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, count, (min(at_once, resamples - start), count))
        means.append(sums[drawn].sum(axis=1) / (count if clusters is None else sizes[drawn].sum(axis=1)))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return DifferenceInterval(float(differences.mean()), float(low), float(high))


def mcnemar_test(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> FlipTest:
    """Compare (Q,) hits by McNemar's test (Psychometrika, 1947), exact and two-sided: twice the probability that of all
    flips as few or fewer are of the rarer kind, 1 at most. Raises ValueError for hits of unequal number."""
    if before.shape != after.shape:
        raise ValueError("Both must be judged on the same queries.")
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    flips = lost + gained
    ways = accumulate(range(min(lost, gained)), lambda way, k: way * (flips - k) // (k + 1), initial=1)
    return FlipTest(lost, gained, min(1.0, 2 * sum(ways) / 2**flips))


def _differences(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    if before.shape != after.shape or (np.isnan(before) != np.isnan(after)).any():
        raise ValueError("Both must be judged on the same queries.")
    differences: NDArray[np.float64] = (after - before)[~np.isnan(before)]
    if not len(differences):
        raise ValueError("No query has an item of its label in the gallery.")
    return differences
