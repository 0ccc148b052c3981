"""The gates of an upgrade: what must not get worse by how much, and the verdict; pure, no database.

A gate reads a measured difference with its interval. All of the interval past the limit fails it, none of it passes it,
and anything between is inconclusive: too little was measured to tell. Smaller is worse for every metric here, so "past"
is below. Nothing passes without evidence by the new model, whatever else is complete.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.domain.verdict import Verdict
from service.errors import GalleryError

LEAST_REFERENCES = 100  # among fewer, ten neighbours are found by chance


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class GateMetric(StrEnum):
    CMC_AT_1 = "cmc_at_1"  # new/h less old/old; of one slice where a gate names it
    WORST_SLICE = "worst_slice_cmc_at_1"  # the same of the slice that is worst, of all that are large enough
    OVERLAP = "overlap_at_10"  # with new/new among the references, h's less the linear map's
    OWN_ITEM_FIRST = "own_item_first"  # h's less the linear map's
    EXPLAINED = "explained_variance"  # of what the new model gives for the references, by h; 1 less the relative error
    COMPLETENESS = "completeness"  # the share of live items that are current in the next generation
    ANN_RECALL = "ann_recall_at_10"


class UnknownGate(GalleryError):
    """A gate asks for what cannot be gated."""


@dataclass(frozen=True)
class GateRule:
    """What is asked of a metric: not below `limit`. A slice is named as in the report, `attribute=value`."""

    metric: GateMetric
    limit: float
    slice: str | None = None


@dataclass(frozen=True)
class Measured:
    """A value of `n` queries (items for completeness) with its interval; `source`: where the evidence comes from.
    detectable: the smallest difference that so many find with a power of 80 %, None where nothing is compared."""

    metric: GateMetric
    value: float
    low: float
    high: float
    n: int
    source: str
    detectable: float | None = None
    slice: str | None = None


@dataclass(frozen=True)
class Gate:
    """A rule, what was measured for it, and what came out; without a measurement, n is 0 and the values are None."""

    metric: GateMetric
    slice: str | None
    value: float | None
    low: float | None
    high: float | None
    limit: float
    outcome: Outcome
    n: int
    source: str
    detectable: float | None


DEFAULT_RULES = (
    GateRule(GateMetric.CMC_AT_1, -0.02),
    GateRule(GateMetric.WORST_SLICE, -0.10),
    GateRule(GateMetric.OVERLAP, -0.02),
    GateRule(GateMetric.EXPLAINED, 0.0),
    GateRule(GateMetric.COMPLETENESS, 1.0),
    GateRule(GateMetric.ANN_RECALL, 0.98),
)
INSTANCE_RULES = (*DEFAULT_RULES, GateRule(GateMetric.OWN_ITEM_FIRST, -0.02))
_BY_NEW_MODEL = frozenset(GateMetric) - {GateMetric.COMPLETENESS, GateMetric.ANN_RECALL}
_OF_REFERENCES = frozenset({GateMetric.OVERLAP, GateMetric.EXPLAINED, GateMetric.OWN_ITEM_FIRST})
_ALWAYS_MEASURED = frozenset(GateMetric) - _BY_NEW_MODEL


def rules_for(task: str, overrides: Sequence[GateRule] = ()) -> tuple[GateRule, ...]:
    """Return the rules of a gallery's task (`instance` or `class`), each replaced by the override of its metric and
    slice if there is one; other overrides are added. Raises UnknownGate for a slice of what has none."""
    for rule in overrides:
        if rule.slice is not None and rule.metric is not GateMetric.CMC_AT_1:
            raise UnknownGate(f"{rule.metric} has no slices; a gate of a slice has the metric {GateMetric.CMC_AT_1}.")
    rules = {(rule.metric, rule.slice): rule for rule in (INSTANCE_RULES if task == "instance" else DEFAULT_RULES)}
    rules |= {(rule.metric, rule.slice): rule for rule in overrides}
    return tuple(rules.values())


def outcome(low: float, high: float, limit: float) -> Outcome:
    """Return what an interval says of a limit that its value should not be below."""
    if high < limit:
        return Outcome.FAIL
    return Outcome.PASS if low >= limit else Outcome.INCONCLUSIVE


def judge_gates(
    rules: Sequence[GateRule], measured: Sequence[Measured], overrides: Sequence[GateRule] = ()
) -> tuple[Gate, ...]:
    """Return a gate for every rule that something was measured for.

    Of several measurements for a rule, the slices among which the worst is asked for, the gate has the one that
    decides. A rule that nothing was measured for is inconclusive if it asks what can always be measured, or is an
    override: whoever asks for a gate is not answered by its absence. Else it is left out.
    """
    gates = []
    for rule in rules:
        candidates = [_gate(rule, found) for found in measured if _answers(found, rule)]
        if candidates:
            gates.append(min(candidates, key=_decides))
        elif rule.metric in _ALWAYS_MEASURED or rule in overrides:
            nothing = (None, None, None, rule.limit, Outcome.INCONCLUSIVE, 0, "", None)
            gates.append(Gate(rule.metric, rule.slice, *nothing))
    return tuple(gates)


def verdict(gates: Sequence[Gate]) -> Verdict:
    """Return `fail` if any gate fails; `not_judged` if none has evidence by the new model; `inconclusive` if any gate
    is; else `pass`."""
    outcomes = {gate.outcome for gate in gates}
    if Outcome.FAIL in outcomes:
        return Verdict.FAIL
    if not any(gate.metric in _BY_NEW_MODEL and gate.n for gate in gates):
        return Verdict.NOT_JUDGED
    return Verdict.INCONCLUSIVE if Outcome.INCONCLUSIVE in outcomes else Verdict.PASS


def what_would_judge(gates: Sequence[Gate]) -> str:
    """Return what evidence is missing for a verdict, in words; "" where none is."""
    if verdict(gates) is Verdict.NOT_JUDGED:
        return (
            "Nothing that the new model encoded was compared. Post the images of 1,000 items as references, or queries"
            " with labels or relevant items."
        )
    wanted = [_wanted(gate) for gate in gates if gate.outcome is Outcome.INCONCLUSIVE]
    return " ".join(wanted)


def _wanted(gate: Gate) -> str:
    name = gate.metric if gate.slice is None else f"{gate.metric} of {gate.slice}"
    if gate.value is None or gate.low is None or gate.high is None or gate.value == gate.limit:
        return f"{name} was not measured." if gate.value is None else f"{name} is at its limit."
    reach = gate.value - gate.low if gate.value > gate.limit else gate.high - gate.value
    count = max(LEAST_REFERENCES, math.ceil(gate.n * (reach / (gate.value - gate.limit)) ** 2))
    return f"{name} would take about {count:,} of {gate.source}, if its value stays."


def _answers(measured: Measured, rule: GateRule) -> bool:
    if measured.metric is not rule.metric:
        return False
    return rule.metric is GateMetric.WORST_SLICE or measured.slice == rule.slice


def _gate(rule: GateRule, found: Measured) -> Gate:
    result = outcome(found.low, found.high, rule.limit)
    if rule.metric in _OF_REFERENCES and found.n < LEAST_REFERENCES:
        result = Outcome.INCONCLUSIVE
    values = (found.value, found.low, found.high, rule.limit, result, found.n, found.source, found.detectable)
    return Gate(rule.metric, found.slice, *values)


def _decides(gate: Gate) -> tuple[int, float, str]:
    order = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)
    return order.index(gate.outcome), gate.low if gate.low is not None else 0.0, gate.slice or ""
