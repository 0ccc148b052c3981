"""Changing what a user says of an upgrade while it is under way: its speed, its canary, its bake."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.audit import Act, Subject, record
from service.domain.guardrails import Bake
from service.domain.upgrade.trials import set_bake, set_canary
from service.domain.upgrade.upgrades import get_upgrade, set_speed
from service.tables import Upgrade


@dataclass(frozen=True)
class NoBake:
    """That the upgrade is not to be baked, or not any more."""


@dataclass(frozen=True)
class UpgradeChange:
    """What is to change; None leaves what there is."""

    speed: float | None = None
    canary: float | None = None
    bake: Bake | NoBake | None = None


def change_upgrade(session: Session, upgrade_id: int, change: UpgradeChange) -> Upgrade:
    """Make all of the changes, or none. Raises what `set_speed`, `set_canary` and `set_bake` do (409)."""
    before = _tried(get_upgrade(session, upgrade_id))
    if change.speed is not None:
        set_speed(session, upgrade_id, change.speed)
    if change.canary is not None:
        set_canary(session, upgrade_id, change.canary)
    if change.bake is not None:
        set_bake(session, upgrade_id, change.bake if isinstance(change.bake, Bake) else None)
    upgrade = get_upgrade(session, upgrade_id)
    if _tried(upgrade) != before:
        record(session, Act.UPGRADE_CHANGED, Subject("upgrade", upgrade_id), before=before, after=_tried(upgrade))
    return upgrade


def _tried(upgrade: Upgrade) -> dict[str, Any]:
    """Return how much of an upgrade is tried on users' queries."""
    bake, result = (None if kept is None else kept.to_json() for kept in (upgrade.bake, upgrade.bake_result))
    return {"canary": upgrade.canary, "bake": bake, "bake_result": result}
