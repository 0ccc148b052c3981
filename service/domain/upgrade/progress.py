"""An upgrade's progress as a tree per phase, counted from rows."""

from datetime import datetime
from itertools import accumulate
from statistics import linear_regression
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.domain.upgrade_state import WORKING, State
from service.tables import Job, Upgrade, UpgradeBatch

_RATE_BATCHES = 33
_STEADY_BATCHES = 6
_AFTER_EVALUATING = {State.READY, State.LIVE, State.FINALIZED, State.ROLLED_BACK}


def progress_of(session: Session, upgrade: Upgrade) -> dict[str, dict[str, Any]]:
    """Return {phase: {done, total, unit, rate, eta_seconds}}; the rate is in units per second, and null where too
    little happened to tell. Nothing that rests (paused, failed, speed 0) has an estimate."""
    now = session.scalars(select(func.now())).one()
    state = upgrade.state
    moving = state in WORKING and upgrade.speed > 0
    reached = upgrade.resume_state if state in (State.PAUSED, State.FAILED) and upgrade.resume_state else state
    return {
        "transforming": _batches(session, upgrade, "transforming", now, moving),
        "catching_up": _batches(session, upgrade, "catching_up", now, moving),
        "indexing": _indexing(session, upgrade, now, moving),
        "evaluating": _phase(int(reached in _AFTER_EVALUATING), 1, "evaluation"),
    }


def _batches(session: Session, upgrade: Upgrade, phase: str, now: datetime, moving: bool) -> dict[str, Any]:
    of_phase = (UpgradeBatch.upgrade_id == upgrade.id) & (UpgradeBatch.phase == phase)
    is_done = UpgradeBatch.state == "done"
    done, total = session.execute(
        select(
            func.coalesce(func.sum(UpgradeBatch.items).filter(is_done), 0),
            func.coalesce(func.sum(UpgradeBatch.items), 0),
        ).where(of_phase)
    ).one()
    # The last batches since the state or the speed changed, so that no pause is part of the rate: the slope of a line
    # through them, because several batches may end at once, and nothing for a while then. Of few batches, what was done
    # since the beginning; below full speed, where rests are yet to come, that says nothing.
    recent = session.execute(
        select(UpgradeBatch.items, UpgradeBatch.done_at)
        .where(of_phase, is_done, UpgradeBatch.done_at > upgrade.updated_at)
        .order_by(UpgradeBatch.done_at.desc())
        .limit(_RATE_BATCHES)
    ).all()
    rate, since = None, 0.0
    if recent:
        if len(recent) >= _STEADY_BATCHES:
            ascending = recent[::-1]
            seconds = [(batch.done_at - ascending[0].done_at).total_seconds() for batch in ascending]
            rate = _slope(seconds, list(accumulate(float(batch.items) for batch in ascending)))
        elif upgrade.speed == 1:
            elapsed = (recent[0].done_at - upgrade.updated_at).total_seconds()
            rate = _rate(float(sum(batch.items for batch in recent)), elapsed)
        since = (now - recent[0].done_at).total_seconds()
    return _phase(int(done), int(total), "items", rate, since, moving)


def _indexing(session: Session, upgrade: Upgrade, now: datetime, moving: bool) -> dict[str, Any]:
    newest = select(Job).where(Job.upgrade_id == upgrade.id, Job.kind == "index_build").order_by(Job.id.desc()).limit(1)
    job = session.scalar(newest)
    if job is None or (not job.progress and job.result is None):
        return _phase(0, 0, "rows")
    if job.result is not None:
        return _phase(job.result["rows"], job.result["rows"], "rows", _rate(job.result["rows"], job.result["seconds"]))
    seconds = (job.updated_at - job.created_at).total_seconds()
    rate = _rate(job.progress["done"], seconds)
    since = (now - job.updated_at).total_seconds()
    return _phase(job.progress["done"], job.progress["total"], "rows", rate, since, moving)


def _slope(seconds: list[float], done: list[float]) -> float | None:
    return linear_regression(seconds, done).slope if len(set(seconds)) > 1 else None


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _phase(
    done: int, total: int, unit: str, rate: float | None = None, since: float = 0.0, moving: bool = False
) -> dict[str, Any]:
    """`since` is how many seconds ago `done` was counted."""
    eta = max(0.0, (total - done) / rate - since) if rate and moving else None
    return {
        "done": done,
        "total": total,
        "unit": unit,
        "rate": rate,
        "eta_seconds": 0.0 if done >= total else eta,
    }
