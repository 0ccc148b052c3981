"""An upgrade's progress as a tree per phase, counted from rows."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.upgrade_state import State
from service.tables import Upgrade

_BATCHES = """
SELECT phase, coalesce(sum(items) FILTER (WHERE state = 'done'), 0), sum(items),
       extract(epoch FROM max(done_at) - min(done_at)),
       coalesce((array_agg(items ORDER BY done_at) FILTER (WHERE state = 'done'))[1], 0)
FROM upgrade_batches WHERE upgrade_id = :upgrade_id GROUP BY phase
"""

# States in which the phases after the bulk pass have ended.
_AFTER_INDEXING = {State.EVALUATING, State.READY, State.LIVE, State.FINALIZED, State.ROLLED_BACK}
_AFTER_EVALUATING = _AFTER_INDEXING - {State.EVALUATING}


def progress_of(session: Session, upgrade: Upgrade) -> dict[str, dict[str, Any]]:
    """Return {phase: {done, total, unit, rate, eta_seconds}}; rate in units per second, null before two batches."""
    tree: dict[str, dict[str, Any]] = {"transforming": _phase(0, 0, None), "catching_up": _phase(0, 0, None)}
    rows = session.execute(text(_BATCHES), {"upgrade_id": upgrade.id})
    for phase, done, total, seconds, first in rows:
        # The clock starts at the end of the first batch, so that batch is not part of the rate.
        rate = float(done - first) / float(seconds) if seconds and done > first else None
        tree[phase] = _phase(int(done), int(total), rate)
    state = (
        State(upgrade.resume_state or upgrade.state) if upgrade.state in ("paused", "failed") else State(upgrade.state)
    )
    tree["indexing"] = _phase(int(state in _AFTER_INDEXING), 1, None, unit="index")
    tree["evaluating"] = _phase(int(state in _AFTER_EVALUATING), 1, None, unit="evaluation")
    return tree


def _phase(done: int, total: int, rate: float | None, unit: str = "items") -> dict[str, Any]:
    eta = (total - done) / rate if rate else None
    return {
        "done": done,
        "total": total,
        "unit": unit,
        "rate": rate,
        "eta_seconds": 0.0 if done >= total else eta,
    }
