"""How an upgrade went live, as its answer and its report say it."""

from dataclasses import asdict
from datetime import datetime

from pydantic import BaseModel

from service.domain.verdict import Verdict
from service.tables import Report, Upgrade


class DecisionView(BaseModel):
    """On what verdict, of which report, an upgrade went live: `by` itself (`auto`) or by `request` (`who` asked for it,
    the name of a key, `-` without keys, and when), and for what `reason` past gates that failed."""

    by: str
    who: str | None
    asked_at: datetime | None
    reason: str | None
    verdict: Verdict
    report: int | None


def decision_view(upgrade: Upgrade) -> DecisionView | None:
    """Return what clients see of how an upgrade went live; None before it did."""
    decision = upgrade.decision
    if decision is None or upgrade.live_at is None:
        return None
    who = None if decision.asked_by is None else decision.asked_by.name
    return DecisionView(who=who, **asdict(decision))


def decision_on(report: Report, upgrade: Upgrade) -> DecisionView | None:
    """Return how an upgrade went live, if it did so on this report."""
    decision = decision_view(upgrade)
    return decision if decision is not None and decision.report == report.number else None
