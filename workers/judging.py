"""Where what was measured of an upgrade meets its gates: the content of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from models.judging.evidence import Evidence
from models.judging.intervals import Interval, wilson
from models.judging.references import ReferencesReport
from models.judging.report import READING, Measurements, Reading, measure
from service.domain.judging.asked_queries import AskedSet
from service.domain.judging.evidence import HeldOut
from service.domain.judging.gates import (
    Gate,
    GateMetric,
    GateRule,
    Measured,
    judge_gates,
    rules_for,
    verdict,
    what_would_judge,
)
from service.domain.verdict import Verdict

_OTHER_LEG = (
    "{count:,} items take the upgrade's second way, since only the active generation has them; its h is not judged."
)
_NEIGHBOURS = 10  # of each query of the sample that recall was measured on


@dataclass(frozen=True)
class Known:
    """What rows say already: how many items are live, how many of them the next generation lacks, how many took another
    way than the one whose h is judged, and the recall@10 of its index on a sample of vectors, None where the index is
    exact."""

    items: int
    items_waiting: int
    other_leg_items: int
    ann_recall: float | None
    recall_sample_size: int
    recall_source: str


@dataclass(frozen=True)
class Judging:
    """How an upgrade is judged. task: the gallery's, `instance` or `class`; gates: overrides of the defaults; about:
    what the report is to say of itself (digests, code version, times), which is given so that nothing else varies;
    query_sets: where the queries come from; held_out: what the trainings of the path's transformations measured."""

    known: Known
    task: str
    gates: tuple[GateRule, ...] = ()
    reading: Reading = READING
    about: Mapping[str, str | int | float] = field(default_factory=dict)
    query_sets: tuple[AskedSet, ...] = ()
    held_out: tuple[HeldOut, ...] = ()


@dataclass(frozen=True)
class Report:
    """What `models.judging.report.to_json` writes: the same evidence, settings and seed give the same bytes.

    `held_out` is of the data that h learned from and not of the gallery: it is shown, and no gate's.
    """

    verdict: Verdict
    gates: tuple[Gate, ...]
    wanted: str
    seed: int
    known: Known
    measurements: Measurements
    about: Mapping[str, str | int | float]
    query_sets: tuple[AskedSet, ...]
    held_out: tuple[HeldOut, ...] = ()


def judge(evidence: Evidence, settings: Judging) -> Report:
    """Measure what the evidence tells, and say whether it is enough. Raises ValueError for queries or references that
    are not finite, and UnknownGate for an override of what cannot be gated."""
    rules = rules_for(settings.task, settings.gates)
    measurements = measure(evidence, settings.reading)
    found = measured(measurements, settings.known)
    gates = judge_gates(rules, found, settings.gates)
    seed = settings.reading.draws.seed
    found_verdict, wanted = verdict(gates), what_would_judge(gates)
    if settings.known.other_leg_items and found_verdict is Verdict.PASS:
        found_verdict, wanted = Verdict.INCONCLUSIVE, _OTHER_LEG.format(count=settings.known.other_leg_items)
    return Report(
        verdict=found_verdict,
        gates=gates,
        wanted=wanted,
        seed=seed,
        known=settings.known,
        measurements=measurements,
        about=dict(settings.about),
        query_sets=settings.query_sets,
        held_out=settings.held_out,
    )


def measured(measurements: Measurements, known: Known) -> list[Measured]:
    """Return what gates can be asked of; rows that were held out of h's training are not among it."""
    missing = known.items_waiting + measurements.spaces.after.non_finite  # nothing finds what is not finite
    complete = 1 - missing / known.items if known.items else 1.0
    found = [Measured(GateMetric.COMPLETENESS, complete, complete, complete, known.items, "rows")]
    trials = known.recall_sample_size * _NEIGHBOURS
    if known.ann_recall is None:
        found.append(Measured(GateMetric.ANN_RECALL, 1.0, 1.0, 1.0, known.items, "exact index"))
    elif trials:
        recall = wilson(known.ann_recall * trials, trials)
        values = (recall.value, recall.low, recall.high, known.recall_sample_size, known.recall_source)
        found.append(Measured(GateMetric.ANN_RECALL, *values))
    own_items = measurements.own_items
    own = None if own_items is None else own_items.above_linear
    return found + _of_queries(measurements) + of_references(measurements.references, own)


def _of_queries(measurements: Measurements) -> list[Measured]:
    served = measurements.served
    if served is None:
        return []
    found = [_compared(GateMetric.CMC_AT_1, served.cmc1.difference, served.source)]
    for slice_ in served.slices:
        found.append(_compared(GateMetric.CMC_AT_1, slice_.difference, served.source, slice_.name))
        if slice_.corrected_high is not None:
            same = _compared(GateMetric.WORST_SLICE, slice_.difference, served.source, slice_.name)
            found.append(replace(same, high=slice_.corrected_high))
    return found


def of_references(references: ReferencesReport | None, own_in_gallery: Interval | None = None) -> list[Measured]:
    """Return what references tell gates; `own_in_gallery` is how often they find their own items in the whole gallery,
    h's less the linear map's, where that is known."""
    if references is None:
        return []
    found = []
    if references.explained is not None:
        found.append(_compared(GateMetric.EXPLAINED, references.explained, references.source))
    if references.overlap_above_linear is not None:
        found.append(_compared(GateMetric.OVERLAP, references.overlap_above_linear, references.source))
    own = own_in_gallery or references.own_item_above_linear
    if own is not None:
        found.append(_compared(GateMetric.OWN_ITEM_FIRST, own, references.source))
    return found


def _compared(metric: GateMetric, interval: Interval, source: str, slice_: str | None = None) -> Measured:
    values = (interval.value, interval.low, interval.high, interval.n, source, interval.detectable())
    return Measured(metric, *values, slice_)
