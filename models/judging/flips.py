"""Flips: which queries that were answered well no longer are, and the reverse.

MUSCLE (arXiv 2407.09435) asks it of language models, and Yan et al. (CVPR 2021) of classifiers: a better mean hides
users who lose what worked.
"""

from dataclasses import dataclass

from models.judging.intervals import DRAWS, Draws, Hits, Interval, Labels, hit_difference, wilson
from models.statistics import mcnemar_test


@dataclass(frozen=True)
class Flips:
    """Of (Q,) hits before and after: rates with Wilson's intervals, their paired difference, and how likely so uneven
    flips are by chance (McNemar, exact). negative: hits before that are none after, as a share of all queries;
    positive: the reverse. lost_of_right: the negative ones as a share of the hits before, None without any."""

    before: Interval
    after: Interval
    difference: Interval
    negative: Interval
    positive: Interval
    lost_of_right: Interval | None
    p_value: float


def flips(before: Hits, after: Hits, labels: Labels | None, draws: Draws = DRAWS) -> Flips:
    """Raises ValueError for hits of unequal number, and without any."""
    test, n, right = mcnemar_test(before, after), len(before), int(before.sum())
    return Flips(
        wilson(right, n, draws.confidence),
        wilson(int(after.sum()), n, draws.confidence),
        hit_difference(before, after, labels, draws),
        wilson(test.lost, n, draws.confidence),
        wilson(test.gained, n, draws.confidence),
        wilson(test.lost, right, draws.confidence) if right else None,
        test.p_value,
    )
