"""Switching another store, switching it back, and removing what an upgrade leaves in it.

The store is first, our record second, both while the upgrade's state is held alone:
1. switch (crash point `external.switched`), or switch back (`external.switched_back`);
2. record it; the scope that the caller holds commits (`external.recorded_live` after a switch).
A crash after 1 leaves a store that has switched, and says so: whoever comes next records it, or asks again for the
rollback. What is to be removed is removed after the upgrade has ended for good, by a worker, again and again until the
store has done it (`external.removed` before that is recorded).
"""

from dataclasses import replace

from sqlalchemy import delete, func, update
from sqlalchemy.orm import Session

from service.audit import Act, Subject, actor_now, record
from service.connectors.named import NamedStores
from service.connectors.store import ExternalStore
from service.crash_points import crash_point
from service.domain.decision import Decision
from service.domain.external.rows import Target, new_side_of
from service.domain.external.upgrades import change_state, get_external_upgrade, lock_state
from service.domain.external_state import ExternalAction, ExternalState, advance
from service.errors import Conflict
from service.tables import ExternalReference, ExternalUpgrade


class SwitchedElsewhere(Conflict):
    """The store's searches see another side than the upgrade's state says."""


_NOT_NEW = (
    "Searches of store {store!r} do not see the new side: somebody switched it back. Roll the upgrade back; nothing was"
    " removed."
)


def switch(session: Session, upgrade_id: int, store: ExternalStore, target: Target) -> ExternalUpgrade | None:
    """Switch the store of an upgrade whose cutover was asked for, and record it; None where nobody asks any more."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state is not ExternalState.READY or upgrade.cutover_requested_at is None:
        return None
    # 1.
    if not store.is_switched():
        store.switch(target.transform)
    crash_point("external.switched")
    # 2.
    decision = upgrade.decision or Decision("request")
    record(
        session,
        Act.EXTERNAL_CUTOVER,
        Subject("external_upgrade", upgrade_id),
        after={"store": upgrade.store, **decision.audited()},
        reason=decision.reason,
        actor=decision.asked_by or replace(actor_now(), tenant=upgrade.tenant),
    )
    return change_state(session, upgrade_id, ExternalAction.CUTOVER, cutover_requested_at=None)


def roll_back(session: Session, stores: NamedStores, upgrade_id: int, *, accept_loss: bool = False) -> ExternalUpgrade:
    """Let searches see the old side again; the new one is removed by a worker afterwards.

    Raises `IllegalTransition` (409) unless the upgrade is live, `StoreRefused` (409) where the store knows of rows that
    were written since the switch, unless `accept_loss`, and `StoreAway` (503).
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, ExternalAction.ROLLBACK) == upgrade.state:
        return upgrade
    # 1.
    with stores.opened(upgrade.store, new_side_of(session, upgrade)) as store:
        store.switch_back(forget_written=accept_loss)
    crash_point("external.switched_back")
    # 2.
    record(session, Act.EXTERNAL_ROLLBACK, Subject("external_upgrade", upgrade_id), after={"store": upgrade.store})
    return change_state(session, upgrade_id, ExternalAction.ROLLBACK)


def finalize(session: Session, stores: NamedStores, upgrade_id: int) -> ExternalUpgrade:
    """End a live upgrade for good; the old side is removed by a worker afterwards.

    Raises `IllegalTransition` (409) unless it is live, `SwitchedElsewhere` (409) and `StoreAway` (503).
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, ExternalAction.FINALIZE) == upgrade.state:
        return upgrade
    with stores.opened(upgrade.store, new_side_of(session, upgrade)) as store:
        if not store.is_switched():
            raise SwitchedElsewhere(_NOT_NEW.format(store=upgrade.store))
    record(session, Act.EXTERNAL_FINALIZE, Subject("external_upgrade", upgrade_id), after={"store": upgrade.store})
    return change_state(session, upgrade_id, ExternalAction.FINALIZE)


def cancel(session: Session, upgrade_id: int) -> ExternalUpgrade:
    """Give an upgrade up that is not live; the new side is removed by a worker afterwards."""
    before = lock_state(session, upgrade_id)
    if before.state is ExternalState.CANCELLED:
        return before
    state = str(before.state)
    upgrade = change_state(session, upgrade_id, ExternalAction.CANCEL, cutover_requested_at=None)
    record(session, Act.EXTERNAL_CANCELLED, Subject("external_upgrade", upgrade_id), before={"state": state})
    return upgrade


def clean_up(session: Session, upgrade_id: int, store: ExternalStore) -> None:
    """Remove what an upgrade that ended left in its store, and what is kept of its rows here, the references; then the
    store is free for the next one."""
    upgrade = get_external_upgrade(session, upgrade_id)
    if upgrade.state is ExternalState.FINALIZED:
        store.drop_old()
    else:
        store.switch_back()  # a worker may have died between the switch and its record
        store.drop_new()
    crash_point("external.removed")
    session.execute(delete(ExternalReference).where(ExternalReference.upgrade_id == upgrade_id))
    session.execute(
        update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade_id).values(cleaned_at=func.now(), error=None)
    )
