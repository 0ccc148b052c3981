"""Reports on upgrades of other stores, and whether a verdict lets one go live: as for galleries here
(`service.domain.judging.reports`), but that the rows are elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import func, null, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, defer

from service.audit import Act, Subject, record
from service.domain.decision import BY_ITSELF, Decision
from service.domain.external.upgrades import lock_state
from service.domain.external_state import ExternalAction, ExternalState, advance
from service.domain.judging.reports import GatesHold, NewReport, asked_now, failed_gates
from service.domain.verdict import Verdict
from service.errors import Conflict, NotFound
from service.queue import ADVANCE_EXTERNAL, send_after_commit
from service.tables import ExternalReport, ExternalUpgrade


class UnknownExternalReport(NotFound):
    """The upgrade of another store has no report yet."""


class ExternalNotReady(Conflict):
    """The upgrade of another store is not ready."""


_FAILED = "Report {number} of the upgrade failed: {gates}. A cutover past it takes an override with its reason."


def store_report(session: Session, upgrade_id: int, new: NewReport) -> ExternalReport:
    """Add a report with the next number; whoever judges holds the upgrade's phase lock."""
    last = session.scalar(select(func.max(ExternalReport.number)).where(ExternalReport.upgrade_id == upgrade_id))
    report = ExternalReport(
        upgrade_id=upgrade_id,
        number=(last or 0) + 1,
        verdict=new.verdict,
        evidence=new.evidence,
        content=new.content,
        seconds=new.seconds,
    )
    session.add(report)
    session.execute(update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade_id).values(evaluate_seed=null()))
    session.flush()
    return report


def newest_reports(session: Session, upgrade_ids: Sequence[int]) -> dict[int, ExternalReport]:
    """Return the report that counts of each upgrade that has one, by upgrade; its content is read when asked for."""
    query = select(ExternalReport).options(defer(ExternalReport.content))
    query = query.where(ExternalReport.upgrade_id.in_(upgrade_ids)).ext(distinct_on(ExternalReport.upgrade_id))
    newest = query.order_by(ExternalReport.upgrade_id, ExternalReport.number.desc())
    return {report.upgrade_id: report for report in session.scalars(newest)}


def newest_report(session: Session, upgrade_id: int) -> ExternalReport | None:
    """Return the report that counts; None before the first one."""
    return newest_reports(session, [upgrade_id]).get(upgrade_id)


def get_report(session: Session, upgrade_id: int) -> ExternalReport:
    """Return the report that counts, or raise `UnknownExternalReport` (404)."""
    report = newest_report(session, upgrade_id)
    if report is None:
        raise UnknownExternalReport(f"External upgrade {upgrade_id} has no report yet: it is judged once verified.")
    return report


def ask_for_report(session: Session, upgrade_id: int, seed: int) -> int:
    """Have a worker judge an upgrade that is ready anew; return the number that the report will have.

    Raises `ExternalNotReady` (409) in another state.
    """
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state is not ExternalState.READY:
        raise ExternalNotReady(
            f"External upgrade {upgrade_id} is {upgrade.state}; it can be judged again while it is ready."
        )
    report = newest_report(session, upgrade_id)
    upgrade.evaluate_seed = seed
    send_after_commit(session, ADVANCE_EXTERNAL, upgrade_id)
    return 1 if report is None else report.number + 1


def request_cutover(session: Session, upgrade_id: int, override: str | None = None) -> ExternalUpgrade:
    """Ask a worker to switch the store; refuse at once (409) unless the upgrade is ready or live, and where a gate
    failed (`GatesHold`), unless `override` says why it should go live all the same."""
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, ExternalAction.CUTOVER) == upgrade.state:
        return upgrade
    report = newest_report(session, upgrade_id)
    verdict = Verdict.NOT_JUDGED if report is None else report.verdict
    if report is not None and verdict is Verdict.FAIL and override is None:
        raise GatesHold(_FAILED.format(number=report.number, gates=failed_gates(report.content)))
    number = None if report is None else report.number
    if override is not None:
        subject = Subject("external_upgrade", upgrade_id)
        record(session, Act.EXTERNAL_OVERRIDE, subject, after={"report": number}, reason=override)
    _decide(upgrade, asked_now(number, override, verdict))
    send_after_commit(session, ADVANCE_EXTERNAL, upgrade_id)
    session.flush()
    session.refresh(upgrade)
    return upgrade


def cut_over_if_passed(session: Session, upgrade_id: int) -> None:
    """Ask for the cutover of an upgrade that is ready and goes live of itself, if its newest report passed."""
    upgrade = lock_state(session, upgrade_id)
    report = newest_report(session, upgrade_id)
    if upgrade.state is not ExternalState.READY or upgrade.cutover != "auto" or upgrade.cutover_requested_at:
        return
    if report is not None and report.verdict is Verdict.PASS:
        _decide(upgrade, replace(BY_ITSELF, report=report.number, verdict=report.verdict))


def content_of(report: ExternalReport) -> dict[str, Any]:
    """Return what a report says."""
    content: dict[str, Any] = json.loads(report.content)
    return content


def _decide(upgrade: ExternalUpgrade, decision: Decision) -> None:
    upgrade.cutover_requested_at = func.clock_timestamp()
    upgrade.decision = decision
