"""What users' queries try of an upgrade: its canary before the cutover, and its bake after it.

A canary is the share of image queries that the candidate answers while the upgrade is ready; it ends with that state. A
bake begins with the cutover, and ends after its minutes, when a guardrail breaks (`service.domain.upgrade.guarding`),
when a user ends it, or with the state `live`. Each change is an event with a note.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from service import logs
from service.domain.gallery.generations import get_stored_generation
from service.domain.guardrails import Bake, BakeResult, Outcome
from service.domain.judging.baked_queries import forget_compared
from service.domain.judging.reports import check_not_failed, failed_report
from service.domain.upgrade.upgrades import NotReady, UpgradeEnded, get_upgrade, lock_state, note_event
from service.domain.upgrade_state import OPEN, State
from service.errors import Conflict
from service.networks.encoders import check_encodes
from service.tables import Upgrade

events = logs.Events(__name__)


class BakeRuns(Conflict):
    """The upgrade is baked; it is neither final nor is its bake to be changed before that ends."""


# Why a change is refused.
_NOT_READY = "Upgrade {id} is {state}; a canary can be set while it is ready."
_RUNS = 'Upgrade {id} is baked until {ends:%Y-%m-%d %H:%M:%S %Z}; end that first, by PATCH with {{"bake": null}}.'
_TOO_LATE = "Upgrade {id} is {state}; how it is baked is said before its cutover."


def set_canary(session: Session, upgrade_id: int, share: float) -> Upgrade:
    """Have the candidate answer a share (0 to 1) of the image queries, in each API process from when it has loaded it.

    Raises `NotReady` (409) in another state than ready, `GatesHold` (409) where a gate of the newest report failed, and
    `VersionWithoutNetworks` (409) where the candidate encodes no images.
    """
    upgrade = lock_state(session, upgrade_id)
    if share == upgrade.canary:
        return upgrade
    if upgrade.state is not State.READY:
        raise NotReady(_NOT_READY.format(id=upgrade_id, state=upgrade.state))
    if share > 0:
        check_encodes(get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id).version)
        check_not_failed(session, upgrade)
    _change_canary(session, upgrade, share, f"The candidate answers {share:.4g} of the image queries.")
    return get_upgrade(session, upgrade_id)


def end_failed_canary(session: Session, upgrade_id: int) -> None:
    """End a canary whose upgrade has a new report of which a gate failed."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.canary > 0 and failed_report(session, upgrade) is not None:
        _change_canary(session, upgrade, 0.0, "The canary ended: a gate of the newest report failed.")


def _change_canary(session: Session, upgrade: Upgrade, share: float, note: str) -> None:
    upgrade.canary = share
    note_event(session, upgrade, note)
    session.flush()
    events.info("upgrade.canary_changed", upgrade_id=upgrade.id, share=share)


def set_bake(session: Session, upgrade_id: int, bake: Bake | None) -> Upgrade:
    """Say how the upgrade is baked after its cutover; None: not at all, which ends a bake that runs.

    Raises `BakeRuns` and `UpgradeEnded` (409).
    """
    upgrade = lock_state(session, upgrade_id)
    if is_baked(upgrade):
        if bake is not None:
            raise _runs(upgrade)
        end_bake(session, upgrade, BakeResult(Outcome.ENDED, "The bake was ended by request.", None))
    elif upgrade.state in OPEN:
        upgrade.bake = bake
    elif bake is not None:
        raise UpgradeEnded(_TOO_LATE.format(id=upgrade_id, state=upgrade.state))
    session.flush()
    return get_upgrade(session, upgrade_id)


def is_baked(upgrade: Upgrade) -> bool:
    """Return whether a bake runs, or its minutes are over and nobody looked since."""
    return upgrade.state is State.LIVE and upgrade.bake_ends_at is not None and upgrade.bake_result is None


def check_not_baked(upgrade: Upgrade) -> None:
    """Raise `BakeRuns` (409) while a bake runs."""
    if is_baked(upgrade):
        raise _runs(upgrade)


def bake_end(upgrade: Upgrade) -> Any:
    """Return, for a cutover that happens now, the SQL of when its bake ends; None without one."""
    return None if upgrade.bake is None else func.now() + timedelta(minutes=upgrade.bake.minutes)


def end_bake(session: Session, upgrade: Upgrade, result: BakeResult) -> None:
    """Record how a bake ended, and forget what was noted of single queries. The upgrade's state is held."""
    upgrade.bake_result = result
    note_event(session, upgrade, result.reason)
    forget_compared(session, upgrade.id)
    session.flush()
    events.info("upgrade.bake_ended", upgrade_id=upgrade.id, outcome=str(result.outcome), reason=result.reason)


def _runs(upgrade: Upgrade) -> BakeRuns:
    return BakeRuns(_RUNS.format(id=upgrade.id, ends=upgrade.bake_ends_at))
