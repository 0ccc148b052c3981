"""Intervals of differences between two systems on the same queries, and what so many queries can tell.

Where queries of one label gain and lose together they are fewer than they seem, so an interval is the wider one of two:
of queries as they are, and of whole labels drawn (the cluster bootstrap).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from models.statistics import paired_bootstrap

Hits = NDArray[np.bool_]
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
_POWER = 0.8
_NO_LABEL = -1


@dataclass(frozen=True)
class Draws:
    """How the bootstrap draws; no interval is another for the same numbers."""

    seed: int = 0
    resamples: int = 10_000
    confidence: float = 0.95


DRAWS = Draws()


@dataclass(frozen=True)
class Interval:
    """A value of `n` queries, and between which bounds it is with the confidence asked for."""

    value: float
    low: float
    high: float
    n: int

    def detectable(self, confidence: float = 0.95) -> float:
        """Return the smallest difference from 0 whose two-sided test at this confidence has a power of 80 %, taken the
        standard error that the width of the interval tells."""
        two_sided = float(ndtri((1 + confidence) / 2))
        return (two_sided + float(ndtri(_POWER))) * (self.high - self.low) / (2 * two_sided)


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Return a rate with its score interval (Wilson, JASA, 1927). Raises ValueError for n = 0."""
    if n == 0:
        raise ValueError("A rate needs a query at least.")
    z, rate = float(ndtri((1 + confidence) / 2)), successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, min(rate, max(0.0, centre - reach)), max(rate, min(1.0, centre + reach)), n)


def hit_difference(before: Hits, after: Hits, labels: Labels | None, draws: Draws = DRAWS) -> Interval:
    """Return the mean of `after - before` of (Q,) hits: the wider of Newcombe's interval, which has a width without any
    flip too, and of labels drawn; `labels` (Q,), where -1 is a query without one, which is drawn alone.

    Raises ValueError for hits of unequal number, and without any.
    """
    found = _wider(newcombe(before, after, draws.confidence), before, after, labels, draws)
    return Interval(found.value, max(-1.0, found.low), min(1.0, found.high), found.n)


def score_difference(before: Scores, after: Scores, labels: Labels | None, draws: Draws = DRAWS) -> Interval:
    """Return the mean of `after - before` of (Q,) scores, NaN in both where there is none: the wider of the intervals
    of queries and of labels drawn. Raises ValueError as `models.statistics.paired_bootstrap` does."""
    found = paired_bootstrap(before, after, draws.confidence, draws.resamples, draws.seed)
    n = int(np.count_nonzero(~np.isnan(np.asarray(before, np.float64))))
    return _wider(Interval(found.mean, found.low, found.high, n), before, after, labels, draws)


def newcombe(before: Hits, after: Hits, confidence: float = 0.95) -> Interval:
    """Return the difference of paired rates with its interval from Wilson's of each (Newcombe, Statistics in Medicine,
    1998, method 10). Raises ValueError for hits of unequal number, and without any."""
    if before.shape != after.shape:
        raise ValueError("Both must be judged on the same queries.")
    n = len(before)
    first, second = wilson(int(before.sum()), n, confidence), wilson(int(after.sum()), n, confidence)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    covariance: float = both * neither - lost * gained
    if covariance > 0:
        covariance = max(0, covariance - n / 2)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down - 2 * correlation * down * up + up * up))

    difference = second.value - first.value
    low = difference - reach(second.value - second.low, first.high - first.value)
    high = difference + reach(second.high - second.value, first.value - first.low)
    return Interval(difference, max(-1.0, low), min(1.0, high), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, step by step down (Holm, Scandinavian Journal of Statistics, 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(order.tolist()):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted


def _wider(
    interval: Interval, before: Hits | Scores, after: Hits | Scores, labels: Labels | None, draws: Draws
) -> Interval:
    if labels is None:
        return interval
    clusters = _clusters(labels)
    count = len(np.unique(clusters[~np.isnan(np.asarray(before, np.float64))]))
    if count in (1, interval.n):
        return interval
    drawn = paired_bootstrap(before, after, draws.confidence, draws.resamples, draws.seed, clusters=clusters)
    stretch = _stretch(draws.confidence, count)
    low = drawn.mean - stretch * (drawn.mean - drawn.low)
    high = drawn.mean + stretch * (drawn.high - drawn.mean)
    return Interval(interval.value, min(interval.low, low), max(interval.high, high), interval.n)


def _clusters(labels: Labels) -> Labels:
    """Return (Q,) labels, where each -1 is a number of its own below."""
    return np.where(labels == _NO_LABEL, -1 - np.arange(len(labels)), labels)


def _stretch(confidence: float, clusters: int) -> float:
    """Return by how much the percentiles of few clusters are too near: Student's quantile for the normal one, and the
    variance's n for n - 1 (what Hesterberg, The American Statistician, 2015, calls narrowness bias)."""
    quantile = (1 + confidence) / 2
    student = float(stdtrit(clusters - 1, quantile)) / float(ndtri(quantile))
    return student * math.sqrt(clusters / (clusters - 1))
