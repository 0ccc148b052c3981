"""For whom an upgrade is worse: by groups that have a name, and by rules on metadata that nobody named.

Attributes are per query: name -> (Q,) str, "" where a query has none. A slice is the queries that have one value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.judging.intervals import DRAWS, Draws, Hits, Interval, Labels, hit_difference, holm, newcombe
from models.statistics import mcnemar_test

Attributes = Mapping[str, NDArray[np.str_]]
LEAST_SHOWN = 30
LEAST_GATED = 200
_SHOWN = 100
_CONDITIONS = 400
_RULES = 3


@dataclass(frozen=True)
class Slice:
    """The queries whose attributes have these values, one pair in a named slice, and how hits changed among them.

    corrected_high: where the interval ends when it holds for all gated slices at once (Bonferroni, which is Holm's
    first step); None for a slice that is too small to be gated. `low` needs no such care: that none of several is bad
    is said only if each of them is not (the intersection-union test: Berger, Technometrics, 1982). p_value: McNemar's,
    p_corrected: Holm's, among all slices that were looked at.
    """

    conditions: tuple[tuple[str, str], ...]
    before: float
    after: float
    difference: Interval
    corrected_high: float | None
    p_value: float
    p_corrected: float

    @property
    def name(self) -> str:
        return " & ".join(f"{attribute}={value}" for attribute, value in self.conditions)


@dataclass(frozen=True)
class Group:
    """The worst group of an attribute, and how far its rate of hits is from that of all queries that have one."""

    value: str
    gap: float


@dataclass(frozen=True)
class MinorityGap:
    """An attribute's worst group before and after; the least of several means is low by chance too."""

    attribute: str
    before: Group
    after: Group


def named_slices(
    attributes: Attributes, before: Hits, after: Hits, labels: Labels | None, draws: Draws = DRAWS
) -> tuple[Slice, ...]:
    """Return all slices of 200 queries and more, and of those of 30 and more the worst, in all 100; lowest first."""
    groups = _groups(attributes)
    p_values = [mcnemar_test(before[rows], after[rows]).p_value for _, rows in groups]
    corrected = holm(p_values)
    lows = [newcombe(before[rows], after[rows], draws.confidence).low for _, rows in groups]
    gated = [place for place, (_, rows) in enumerate(groups) if len(rows) >= LEAST_GATED]
    small = sorted(set(range(len(groups))) - set(gated), key=lambda place: (lows[place], groups[place][0]))
    found = []
    for place in gated + small[: max(0, _SHOWN - len(gated))]:
        condition, rows = groups[place]
        interval, high = _judge(before, after, labels, rows, draws, len(gated) if place in gated else None)
        rates = float(before[rows].mean()), float(after[rows].mean())
        found.append(Slice((condition,), *rates, interval, high, p_values[place], corrected[place]))
    return tuple(sorted(found, key=lambda slice_: (slice_.difference.low, slice_.conditions)))


def found_rules(
    attributes: Attributes, before: Hits, after: Hits, labels: Labels | None, draws: Draws = DRAWS
) -> tuple[Slice, ...]:
    """Return up to three slices by one or two conditions for which hits were lost beyond what all queries lost.

    They are searched for among all such rules on one half of the queries, drawn by the seed, and judged on the other
    one: what a search finds by chance does not last there. A rule takes its queries along before the next is searched.
    """
    drawn = np.random.default_rng(draws.seed).permutation(len(before))
    searched, judged = np.sort(drawn[: len(drawn) // 2]), np.sort(drawn[len(drawn) // 2 :])
    differences = after.astype(np.float64) - before
    found: list[tuple[tuple[tuple[str, str], ...], NDArray[np.int64]]] = []
    for _ in range(_RULES):
        rule = _worst_rule(attributes, differences, searched)
        if rule is None:
            break
        searched = searched[~_matches(attributes, rule, searched)]
        rows = judged[_matches(attributes, rule, judged)]
        if len(rows) >= LEAST_SHOWN:
            found.append((rule, rows))
    p_values = [mcnemar_test(before[rows], after[rows]).p_value for _, rows in found]
    return tuple(
        Slice(
            rule,
            float(before[rows].mean()),
            float(after[rows].mean()),
            *_judge(before, after, labels, rows, draws, None),
            p_value,
            corrected,
        )
        for (rule, rows), p_value, corrected in zip(found, p_values, holm(p_values), strict=True)
    )


def minority_gaps(attributes: Attributes, before: Hits, after: Hits) -> tuple[MinorityGap, ...]:
    """Return the gap of every attribute that has two groups of 30 queries and more."""
    found = []
    for attribute in sorted(attributes):
        groups = _groups({attribute: attributes[attribute]})
        if len(groups) < 2:
            continue
        has_one = attributes[attribute] != ""
        worst = []
        for hits in (before, after):
            rate, value = min((float(hits[rows].mean()), value) for (_, value), rows in groups)
            worst.append(Group(value, rate - float(hits[has_one].mean())))
        found.append(MinorityGap(attribute, *worst))
    return tuple(found)


def _groups(attributes: Attributes) -> list[tuple[tuple[str, str], NDArray[np.int64]]]:
    """Return each condition that 30 queries and more meet, with their numbers."""
    found = []
    for attribute in sorted(attributes):
        values, group = np.unique(attributes[attribute], return_inverse=True)
        order = np.argsort(group, kind="stable")
        ends = np.cumsum(np.bincount(group, minlength=len(values)))
        for value, start, end in zip(values.tolist(), [0, *ends], ends, strict=False):
            if value and end - start >= LEAST_SHOWN:
                found.append(((attribute, value), order[start:end]))
    return found


def _judge(
    before: Hits, after: Hits, labels: Labels | None, rows: NDArray[np.int64], draws: Draws, gated: int | None
) -> tuple[Interval, float | None]:
    """Return the interval of some queries, and where the one that holds for `gated` slices at once ends."""
    own = None if labels is None else labels[rows]
    interval = hit_difference(before[rows], after[rows], own, draws)
    if gated is None:
        return interval, None
    together = replace(draws, confidence=1 - (1 - draws.confidence) / gated)
    return interval, max(interval.high, hit_difference(before[rows], after[rows], own, together).high)


def _worst_rule(
    attributes: Attributes, differences: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[tuple[str, str], ...] | None:
    """Return the one or two conditions whose queries lost most, in standard errors below the mean of these queries."""
    groups = _groups({attribute: values[rows] for attribute, values in attributes.items()})
    groups = sorted(groups, key=lambda group: (-len(group[1]), group[0]))[:_CONDITIONS]
    spread = float(differences[rows].std()) if len(rows) else 0.0
    if not groups or not spread:
        return None
    meets = np.zeros((len(rows), len(groups)), np.float32)
    for column, (_, members) in enumerate(groups):
        meets[members, column] = 1
    counts = meets.T @ meets  # (C, C): on the diagonal, of one condition
    sums = meets.T @ (meets * (differences[rows] - differences[rows].mean()).astype(np.float32)[:, None])
    scores = np.where(counts >= LEAST_SHOWN, sums / np.sqrt(np.maximum(counts, 1)) / spread, np.inf)
    scores[np.tril_indices(len(groups), -1)] = np.inf
    scores = np.round(scores, 4)  # what all queries have in common differs from their mean by rounding alone
    first, second = np.unravel_index(np.argmin(scores), scores.shape)
    if scores[first, second] >= 0:
        return None
    return tuple(sorted({groups[first][0], groups[second][0]}))


def _matches(attributes: Attributes, rule: tuple[tuple[str, str], ...], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    met: NDArray[np.bool_] = np.logical_and.reduce([attributes[name][rows] == value for name, value in rule])
    return met
