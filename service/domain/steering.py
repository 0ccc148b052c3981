"""What upgrades, upgrades of other stores and backfills have in common as rows: long work that users steer, each kind
moved along its table of states by one function of its room, which holds the state meanwhile."""

from collections.abc import Collection
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import case, func, update
from sqlalchemy.orm import Session

from service.tables import Backfill, ExternalUpgrade, Upgrade

Work = TypeVar("Work", Upgrade, ExternalUpgrade, Backfill)


def move(session: Session, work: Work, target: StrEnum, **values: Any) -> None:
    """Change the state of a row, which is held; `values` are columns set with it. What is paused or has failed keeps
    the state that it left."""
    table, state = type(work), work.state
    left = {"resume_state": state} if target in ("paused", "failed") else {}
    changed = update(table).where(table.id == work.id, table.state == state)
    changed = changed.values(state=target, updated_at=func.now(), **left, **values)
    if session.scalar(changed.returning(table.id)) is None:
        raise RuntimeError(f"{table.__name__} {work.id} left state {state} while its lock was held.")


def throttle(session: Session, work: Work, speed: float, open_states: Collection[StrEnum]) -> bool:
    """Set which share of the time each worker works on it, 0 to 1, from what it claims next on; return whether it is
    in one of the states, and has a speed at all."""
    table = type(work)
    # The rate is measured from `updated_at` on, and the same speed again is no change.
    updated_at = case((table.speed == speed, table.updated_at), else_=func.now())
    changed = update(table).where(table.id == work.id, table.state.in_(open_states))
    return session.scalar(changed.values(speed=speed, updated_at=updated_at).returning(table.id)) is not None
