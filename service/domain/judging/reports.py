"""Reports of what judging an upgrade found, and whether its verdict lets it go live.

A report is written once and never changed. It belongs to the rows that it was made of: when too many changed since, or
when there is much more evidence, another one is made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, defer

from service.audit import actor_now
from service.domain.decision import BY_ITSELF, Decision
from service.domain.judging.evidence import count_evidence, count_given
from service.domain.judging.gates import GateMetric, GateRule, Outcome
from service.domain.verdict import Verdict
from service.errors import Conflict, NotFound
from service.tables import Gallery, Report, Upgrade

_STALE_SHARE = 0.05  # of the gallery's items, changed since
_LEAST_CHANGES = 100


class UnknownReport(NotFound):
    """The upgrade has no report of this number."""


class GatesHold(Conflict):
    """The verdict on the upgrade keeps it from going live."""


# Why an upgrade does not go live.
_FAILED = "Report {number} of the upgrade failed: {gates}. A cutover past it takes an override with its reason."
_NO_CANARY = "Report {number} of the upgrade failed: {gates}. Its candidate answers no user's queries."
_NOT_PASSED = "The verdict on the upgrade is {verdict}; of itself it goes live on a pass alone."


@dataclass(frozen=True)
class NewReport:
    """What judging found: content is JSON, `evidence` how many images or queries both versions have."""

    verdict: Verdict
    revision: int
    evidence: int
    content: str
    seconds: float


def store_report(session: Session, upgrade_id: int, new: NewReport) -> Report:
    """Add a report with the next number; whoever judges holds the upgrade's phase lock."""
    last = session.scalar(select(func.max(Report.number)).where(Report.upgrade_id == upgrade_id))
    report = Report(
        upgrade_id=upgrade_id,
        number=(last or 0) + 1,
        verdict=new.verdict,
        revision=new.revision,
        evidence=new.evidence,
        content=new.content,
        seconds=new.seconds,
    )
    session.add(report)
    session.flush()
    return report


def newest_report(session: Session, upgrade_id: int) -> Report | None:
    """Return the report that counts; None before the first one."""
    return next(iter(newest_reports(session, [upgrade_id]).values()), None)


def newest_reports(session: Session, upgrade_ids: Sequence[int]) -> dict[int, Report]:
    """Return the report that counts of each upgrade that has one, by upgrade; without its content until that is asked
    for."""
    query = select(Report).options(defer(Report.content)).where(Report.upgrade_id.in_(upgrade_ids))
    newest = query.ext(distinct_on(Report.upgrade_id)).order_by(Report.upgrade_id, Report.number.desc())
    return {report.upgrade_id: report for report in session.scalars(newest)}


def get_report(session: Session, upgrade_id: int, number: int | None = None) -> Report:
    """Return a report, the newest without a number, or raise `UnknownReport` (404)."""
    report = newest_report(session, upgrade_id) if number is None else session.get(Report, (upgrade_id, number))
    if report is None:
        raise UnknownReport(f"Upgrade {upgrade_id} has no report{'' if number is None else f' {number}'} yet.")
    return report


def list_reports(session: Session, upgrade_id: int, after_number: int, limit: int) -> list[Report]:
    """Return up to `limit` reports with numbers above `after_number`, oldest first."""
    query = select(Report).where(Report.upgrade_id == upgrade_id, Report.number > after_number)
    return list(session.scalars(query.options(defer(Report.content)).order_by(Report.number).limit(limit)))


def ask_for_report(session: Session, upgrade: Upgrade, seed: int) -> int:
    """Have a worker judge the upgrade anew; return the number that the report will have."""
    report = newest_report(session, upgrade.id)
    upgrade.evaluate_seed = seed
    upgrade.evaluate_asked_at = func.clock_timestamp()
    return 1 if report is None else report.number + 1


def clear_request(session: Session, upgrade: Upgrade) -> None:
    """Say that the report is written that was asked for when the upgrade was read; a later request stays."""
    same = Upgrade.evaluate_asked_at.is_not_distinct_from(upgrade.evaluate_asked_at)
    session.execute(
        update(Upgrade).where(Upgrade.id == upgrade.id, same).values(evaluate_seed=None, evaluate_asked_at=None)
    )


def wants_report(session: Session, upgrade: Upgrade) -> bool:
    """Return whether another report is due: one was asked for, or the newest is stale."""
    if upgrade.evaluate_seed is not None:
        return True
    report = newest_report(session, upgrade.id)
    if report is None:
        return True
    gallery = session.get_one(Gallery, upgrade.gallery_id)
    if is_stale(report, gallery):
        return True
    if report.verdict in (Verdict.PASS, Verdict.FAIL):
        return False
    wanted = max(_LEAST_CHANGES, report.evidence)  # as much again as there was
    began_at = report.created_at - timedelta(seconds=report.seconds)
    if count_given(session, upgrade, began_at) >= wanted:
        return True
    return gallery.revision - report.revision >= wanted and (
        count_evidence(session, upgrade, report.revision) >= wanted
    )


def is_stale(report: Report, gallery: Gallery) -> bool:
    """Return whether more of the gallery changed since a report than it may."""
    return gallery.revision - report.revision > max(_LEAST_CHANGES, _STALE_SHARE * gallery.items)


def asked_now(report: int | None, reason: str | None, verdict: Verdict | None = None) -> Decision:
    """Return that whoever is served here now wants an upgrade to go live."""
    return Decision("request", reason, report, verdict, actor_now(), datetime.now(UTC).isoformat(timespec="seconds"))


def check_verdict(session: Session, upgrade: Upgrade) -> Decision:
    """Return on what verdict the upgrade goes live, and by whose wish, or raise `GatesHold` (409).

    Of itself it does so on a pass; when a person asked for it, unless a gate failed and that report's failure was not
    overridden. An upgrade that only observes does so on any.
    """
    report = newest_report(session, upgrade.id)
    verdict = Verdict.NOT_JUDGED if report is None else report.verdict
    number = None if report is None else report.number
    asked = upgrade.cutover_requested_at is not None
    wish = upgrade.decision if asked and upgrade.decision is not None else BY_ITSELF

    overridden = wish.reason is not None and wish.report == number
    if not upgrade.observe:
        if report is not None and verdict is Verdict.FAIL and not overridden:
            raise GatesHold(_FAILED.format(number=report.number, gates=failed_gates(report.content)))
        if not asked and verdict is not Verdict.PASS:
            raise GatesHold(_NOT_PASSED.format(verdict=verdict))
    return replace(wish, verdict=verdict, report=number)


def check_not_failed(session: Session, upgrade: Upgrade) -> None:
    """Raise `GatesHold` (409) where the newest report keeps the candidate from answering users."""
    report = failed_report(session, upgrade)
    if report is not None:
        raise GatesHold(_NO_CANARY.format(number=report.number, gates=failed_gates(report.content)))


def failed_report(session: Session, upgrade: Upgrade) -> Report | None:
    """Return the newest report if a gate of it failed, unless the upgrade only observes."""
    report = newest_report(session, upgrade.id)
    return report if report is not None and report.verdict is Verdict.FAIL and not upgrade.observe else None


def rules_of(upgrade: Upgrade) -> list[GateRule]:
    """Return the gates that were asked for with the upgrade."""
    return [GateRule(GateMetric(rule["metric"]), rule["limit"], rule["slice"]) for rule in upgrade.gates]


def failed_gates(content: str) -> str:
    """Return the gates that failed of a report's content, each with what was measured and its limit."""
    failed = [gate for gate in json.loads(content)["gates"] if gate["outcome"] == Outcome.FAIL]
    return "; ".join(
        f"{gate['metric']}{'' if gate['slice'] is None else ' of ' + gate['slice']} {gate['value']:.3g}"
        f" ({gate['low']:.3g} to {gate['high']:.3g}), not below {gate['limit']:g}"
        for gate in failed
    )
