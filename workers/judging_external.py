"""Judging an upgrade of another store: by the references that were given for it, whose own rows are read from both
sides of the store, and by what the verification found."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from models.judging.evidence import Queries, References
from models.judging.intervals import Draws
from models.judging.references import ReferencesReport, judge_references
from models.judging.report import to_json
from service.connectors.store import ExternalStore
from service.domain.external.evidence import ReferenceRows, read_references
from service.domain.external_findings import Findings
from service.domain.judging.gates import (
    INSTANCE_RULES,
    Gate,
    GateMetric,
    Measured,
    judge_gates,
    verdict,
    what_would_judge,
)
from service.domain.judging.reports import NewReport
from service.domain.verdict import Verdict
from service.tables import ExternalUpgrade, ModelVersion
from workers.app import WorkerParts
from workers.judging import of_references
from workers.linear_floor import linear_floor

if TYPE_CHECKING:
    from service.index.protocol import Metric

_RULES = tuple(
    rule
    for rule in INSTANCE_RULES
    if rule.metric in (GateMetric.OVERLAP, GateMetric.OWN_ITEM_FIRST, GateMetric.EXPLAINED, GateMetric.COMPLETENESS)
)
_SOURCE = "references"


@dataclass(frozen=True)
class ExternalReport:
    """What is written of a judgement; `verification` is what comparing both sides of the store found."""

    verdict: Verdict
    gates: tuple[Gate, ...]
    wanted: str
    seed: int
    references: ReferencesReport | None
    verification: Findings


def judge_external(
    parts: WorkerParts, store: ExternalStore, upgrade: ExternalUpgrade, findings: Findings, seed: int
) -> NewReport:
    """Return a report on an upgrade whose sides were compared: the same for the same rows, references and seed.

    Whether one vector is as near to another as a user will find it is judged among the references alone: each is asked
    for by what φ_new gives, and found by what the new side has. Raises ValueError, and what the store raises.
    """
    began = time.monotonic()
    most = parts.settings.evaluation_sample_items
    with parts.database.session_scope() as session:
        rows = read_references(session, upgrade, store, most=most)
        version = session.get_one(ModelVersion, upgrade.to_version_id)
    references = None if rows is None or len(rows) < 2 else _judged(parts, upgrade, rows, version, seed)
    complete = _completeness(findings)
    gates = judge_gates(_RULES, [complete, *of_references(references)])
    report = ExternalReport(verdict(gates), gates, what_would_judge(gates), seed, references, findings)
    return NewReport(
        report.verdict, 0, 0 if rows is None else len(rows), to_json(report).decode(), time.monotonic() - began
    )


def _judged(
    parts: WorkerParts, upgrade: ExternalUpgrade, rows: ReferenceRows, version: ModelVersion, seed: int
) -> ReferencesReport:
    metric: Metric = cast("Metric | None", upgrade.description.metric) or ("cosine" if version.normalize else "l2")
    floor = linear_floor(parts, rows.old, rows.target, (upgrade.transformation_id,), version, metric, seed)
    nothing = rows.old.embedding
    queries = Queries(before=nothing, after=rows.target, item_ids=rows.old.item_id, source=_SOURCE)
    return judge_references(References(queries, rows.transformed, floor.vectors), metric, Draws(seed))


def _completeness(findings: Findings) -> Measured:
    """Return the share of rows whose new side was as recorded when both sides were compared; an upgrade is not judged
    before that is all."""
    complete = 0.0 if findings.repaired_ranges else 1.0
    return Measured(GateMetric.COMPLETENESS, complete, complete, complete, findings.rows, "rows of the store")
