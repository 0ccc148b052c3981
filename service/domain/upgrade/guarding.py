"""Looking after upgrades that are baked: a guardrail that breaks rolls one back; a bake whose minutes are over ends.

Each is one transaction that holds the upgrade's state: what is known of its queries is read, and either nothing
happens, or the bake's result is recorded (crash point `bake.ended`) with the rollback, which is an ordinary one. So it
does no harm that every worker looks, and a finalize too, and after a crash another one finds what this one did. A
rollback that is refused,
since it would lose items or another upgrade stands on the generation, leaves the upgrade live, and is recorded as such.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import logs
from service.crash_points import crash_point
from service.db import Database
from service.domain.guardrails import BakeResult, Broken, Figures, FiguresAtEnd, Outcome, broken_guardrails
from service.domain.judging.baked_queries import figures_of
from service.domain.judging.reports import get_report
from service.domain.upgrade.cutover import NotComplete, OtherUpgradeFirst, roll_back
from service.domain.upgrade.trials import end_bake, is_baked
from service.domain.upgrade.upgrades import lock_state
from service.domain.upgrade_state import State
from service.domain.verdict import Verdict
from service.tables import Upgrade

events = logs.Events(__name__)


def guard_bakes(database: Database) -> list[int]:
    """Look at every upgrade that is baked; return those that were rolled back, whose generations are to be removed."""
    with database.session_scope() as session:
        baked = select(Upgrade.id).where(
            Upgrade.state == State.LIVE, Upgrade.bake_ends_at.is_not(None), Upgrade.bake_result.is_(None)
        )
        ids = list(session.scalars(baked.order_by(Upgrade.id)))
    return [upgrade_id for upgrade_id in ids if guard_bake(database, upgrade_id)]


def guard_bake(database: Database, upgrade_id: int) -> bool:
    """Look at one upgrade; return whether it was rolled back."""
    try:
        with database.session_scope() as session:
            return look(session, upgrade_id)
    except (NotComplete, OtherUpgradeFirst) as error:
        with database.session_scope() as session:
            _record_refusal(session, upgrade_id, error.message)
        return False


def look(session: Session, upgrade_id: int) -> bool:
    """Roll the upgrade back if a guardrail breaks, or end its bake if it is over. Raises what `roll_back` does."""
    upgrade = lock_state(session, upgrade_id)
    if not is_baked(upgrade) or upgrade.bake is None:
        return False  # somebody else was first

    bake = upgrade.bake
    figures = figures_of(session, upgrade_id, bake)
    broken = broken_guardrails(bake, figures, _expected_overlap(session, upgrade))
    if broken:
        sentence = f"Rolled back by its guardrails, on {figures.n} queries: {_listed(broken)}."
        _end(session, upgrade, Outcome.ROLLED_BACK, sentence, figures, broken)
        crash_point("bake.ended")
        roll_back(session, upgrade_id, guardrails=sentence)
        return True
    if session.scalar(select(Upgrade.bake_ends_at <= func.now()).where(Upgrade.id == upgrade_id)):
        if figures.n < bake.least_queries:
            sentence = f"The bake is over, undecided: {figures.n} queries came, and {bake.least_queries} decide."
            _end(session, upgrade, Outcome.UNDECIDED, sentence, figures)
        else:
            sentence = f"The bake is over, and no guardrail broke, on {figures.n} queries."
            _end(session, upgrade, Outcome.PASSED, sentence, figures)
    return False


def _record_refusal(session: Session, upgrade_id: int, reason: str) -> None:
    upgrade = lock_state(session, upgrade_id)
    if not is_baked(upgrade) or upgrade.bake is None:
        return
    bake = upgrade.bake
    figures = figures_of(session, upgrade_id, bake)
    broken = broken_guardrails(bake, figures, _expected_overlap(session, upgrade))
    sentence = f"Guardrails broke ({_listed(broken)}), and the upgrade stays live: {reason}"
    _end(session, upgrade, Outcome.NOT_ROLLED_BACK, sentence, figures, broken)


def _end(
    session: Session,
    upgrade: Upgrade,
    outcome: Outcome,
    sentence: str,
    figures: Figures,
    broken: Sequence[Broken] = (),
) -> None:
    found = FiguresAtEnd(**asdict(figures), broken=tuple(broken))
    end_bake(session, upgrade, BakeResult(outcome, sentence, found))


def _expected_overlap(session: Session, upgrade: Upgrade) -> float | None:
    """Return how alike the report on which the upgrade went live found the answers of both generations, if it passed:
    those to shadowed queries, or else to its own."""
    decision = upgrade.decision
    if decision is None or decision.verdict is not Verdict.PASS or decision.report is None:
        return None
    measured = json.loads(get_report(session, upgrade.id, decision.report).content)["measurements"]
    churn = measured["churn"] or measured["churn_of_queries"]
    return None if churn is None else churn["overlap"]


def _listed(broken: list[Broken]) -> str:
    return "; ".join(map(str, broken))
