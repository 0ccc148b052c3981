"""How an upgrade is baked: what is watched after its cutover, and what of it rolls the upgrade back; pure, no database.

A share of the image queries is asked of both generations, off their path and in the same way, so that both are measured
alike. A guardrail breaks when it is clear, since it is looked at again and again: when a share of the queries is above
its limit with an interval of three standard deviations, or the mean overlap below its with one of two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from service.json_records import JsonRecord

_DEVIATIONS = 3.0
_DEVIATIONS_OF_MEAN = 2.0  # an overlap that has collapsed is far below what it was
_SLOW_SHARE = 0.01  # of the queries is slower than their 99th percentile
_EXPECTED_PART = 0.5  # of the overlap that a report that passed has seen


@dataclass(frozen=True)
class Guardrails:
    """The most that may be; None watches nothing. errors: share of the queries that the new generation fails and the
    previous one answers; p99_ratio: how many times as long the slowest hundredth may take; empty_answers: share of the
    queries that find nothing, and found something before; overlap: the least mean overlap@10 of both answers."""

    errors: float | None = 0.01
    p99_ratio: float | None = 2.0
    empty_answers: float | None = 0.01
    overlap: float | None = 0.2


@dataclass(frozen=True)
class Bake(JsonRecord):
    """For how many minutes from the cutover on, which share of image queries is asked of both generations, and from how
    many on guardrails decide."""

    minutes: float
    share: float = 0.05
    least_queries: int = 50
    guardrails: Guardrails = Guardrails()


@dataclass(frozen=True)
class Figures:
    """What is known of n queries that both generations were asked: how many only the new one failed; how many only it
    found nothing for; of the `timed` ones that both answered, the 99th percentiles in seconds, None where there are
    none, and how many took longer than the guardrail's times the previous generation's; the mean and the deviation of
    the overlap@10 of the `compared` ones that had an answer."""

    n: int
    failed: int
    empty: int
    timed: int
    slow: int
    p99_before: float | None
    p99_after: float | None
    compared: int
    overlap: float | None
    overlap_deviation: float | None


@dataclass(frozen=True)
class Broken:
    """A guardrail that does not hold, with what was measured and its limit."""

    guardrail: str
    measured: float
    limit: float

    def __str__(self) -> str:
        return f"{self.guardrail} {self.measured:.3g}, limit {self.limit:g}"


class Outcome(StrEnum):
    """How a bake ended."""

    PASSED = "passed"  # its minutes are over, and no guardrail broke
    UNDECIDED = "undecided"  # its minutes are over, and there were fewer queries than guardrails decide by
    ROLLED_BACK = "rolled_back"  # a guardrail broke
    NOT_ROLLED_BACK = "not_rolled_back"  # a guardrail broke, and a rollback was refused
    ENDED = "ended"  # a user ended it


@dataclass(frozen=True)
class FiguresAtEnd(Figures):
    """What was known of the queries when a bake ended, and what broke."""

    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class BakeResult(JsonRecord):
    """How a bake ended, and on what figures; None where nobody looked at them."""

    outcome: Outcome
    reason: str
    figures: FiguresAtEnd | None


def broken_guardrails(bake: Bake, figures: Figures, expected_overlap: float | None = None) -> list[Broken]:
    """Return what breaks; nothing before there are as many queries as the bake wants.

    Where a report that passed says how alike the answers of both generations are, half of that is alike enough: in a
    large gallery the ten nearest change with any good upgrade.
    """
    return [] if figures.n < bake.least_queries else list(_broken(bake.guardrails, figures, expected_overlap))


def _broken(limits: Guardrails, found: Figures, expected_overlap: float | None) -> Iterator[Broken]:
    if limits.errors is not None and _exceeds(found.failed, found.n, limits.errors):
        yield Broken("errors", found.failed / found.n, limits.errors)
    if limits.empty_answers is not None and _exceeds(found.empty, found.n, limits.empty_answers):
        yield Broken("empty_answers", found.empty / found.n, limits.empty_answers)
    if limits.p99_ratio is not None and _exceeds(found.slow, found.timed, _SLOW_SHARE):
        yield Broken("p99_ratio", (found.p99_after or 0.0) / (found.p99_before or math.inf), limits.p99_ratio)
    if limits.overlap is not None and found.overlap is not None and found.compared > 1:
        least = limits.overlap if expected_overlap is None else min(limits.overlap, _EXPECTED_PART * expected_overlap)
        margin = _DEVIATIONS_OF_MEAN * (found.overlap_deviation or 0.0) / math.sqrt(found.compared)
        if found.overlap + margin < least:
            yield Broken("overlap", found.overlap, least)


def _exceeds(count: int, n: int, limit: float) -> bool:
    """Return whether a share of n is above a limit: all of its Wilson interval."""
    if n == 0:
        return False
    share, z2 = count / n, _DEVIATIONS**2
    centre = share + z2 / (2 * n)
    half = _DEVIATIONS * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (centre - half) / (1 + z2 / n) > limit
