"""Cutover, rollback and finalize: the moments when a gallery's active generation changes or becomes final.

Cutover and rollback are one function, `_switch`, used both ways. Each is one transaction that holds the upgrade's
state and the gallery's row (so no write is under way), checks promise 2, and then moves the pointer and the state.
A crash before the commit leaves everything as it was; after it, replicas flip when they next read the gallery's row.
"""

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service import logs
from service.domain.batches import Transform, transform_items
from service.domain.galleries import lock_gallery
from service.domain.generations import count_missing, drop_generation, missing_items
from service.domain.ingest import delete_items
from service.domain.upgrade_state import OPEN, Action, State, advance
from service.domain.upgrades import change_state, lock_state
from service.errors import Conflict
from service.tables import Gallery, Generation, Item, Upgrade, embeddings_table

events = logs.Events(__name__)


class NotComplete(Conflict):
    """Live items lack a current row in the generation that should become active."""


class RollbackWouldLose(NotComplete):
    """Items were written since the cutover that the previous generation does not have."""


class OtherUpgradeFirst(Conflict):
    """Another upgrade of the gallery stands on the generation."""


def request_cutover(session: Session, upgrade_id: int) -> Upgrade:
    """Ask the worker to cut over; refuse at once (409) unless the upgrade is ready or live."""
    upgrade = lock_state(session, upgrade_id)
    if advance(State(upgrade.state), Action.CUTOVER) != State(upgrade.state):
        upgrade.cutover_requested_at = func.now()
    return upgrade


def withdraw_cutover(session: Session, upgrade_id: int) -> Upgrade:
    """Take the request back; what has gone live meanwhile stays live."""
    upgrade = lock_state(session, upgrade_id)
    upgrade.cutover_requested_at = None
    return upgrade


def cut_over(
    session: Session, upgrade_id: int, transform: Transform, rows_per_chunk: int, max_remainder: int
) -> Upgrade:
    """Transform the last remainder and make the next generation active.

    Raises `NotComplete` when the remainder is larger than `max_remainder` (catch up first: writers wait meanwhile) or
    cannot be transformed, and `IllegalTransition` unless the upgrade is ready.
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(State(upgrade.state), Action.CUTOVER) == State(upgrade.state):
        return upgrade
    gallery = lock_gallery(session, upgrade.gallery_id)
    missing = missing_items(session, gallery.id, upgrade.to_generation_id, limit=max_remainder + 1)
    if len(missing) > max_remainder:
        raise NotComplete(f"More than {max_remainder} items wait for catch-up; the cutover follows it.")
    if missing:
        transform_items(session, upgrade, missing[0], missing[-1], transform, rows_per_chunk)
    _delete_orphans(session, upgrade)
    _switch(session, gallery, upgrade.to_generation_id)
    return change_state(session, upgrade_id, Action.CUTOVER, cutover_requested_at=None)


def roll_back(session: Session, upgrade_id: int, *, accept_loss: bool = False) -> Upgrade:
    """Make the previous generation active again and drop the next one.

    Items that the previous generation does not have (vectors imported in the new space since the cutover) refuse the
    rollback with `RollbackWouldLose`, which names them; with `accept_loss` they are deleted.
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(State(upgrade.state), Action.ROLLBACK) == State(upgrade.state):
        return upgrade
    gallery = lock_gallery(session, upgrade.gallery_id)
    following = _open_upgrade(session, gallery.id)
    if following is not None:
        raise OtherUpgradeFirst(f"Upgrade {following.id} starts from this one's generation; cancel it first.")
    if gallery.active_generation_id != upgrade.to_generation_id:
        raise OtherUpgradeFirst("A later upgrade is live on top of this one; roll that one back first.")
    missing = missing_items(session, gallery.id, upgrade.from_generation_id)
    if missing:
        names = session.scalars(select(Item.external_id).where(Item.id.in_(missing)).order_by(Item.id)).all()
        if not accept_loss:
            listed = ", ".join(repr(name) for name in names[:10])
            raise RollbackWouldLose(
                f"A rollback would lose {len(names)} items that only the new generation has: {listed}"
                f"{', ...' if len(names) > 10 else ''}. Repeat it with accept_loss=true to delete them."
            )
        delete_items(session, gallery.id, names)
    _switch(session, gallery, upgrade.from_generation_id)
    upgrade = change_state(session, upgrade_id, Action.ROLLBACK)
    drop_generation(session, upgrade.to_generation_id)
    return upgrade


def finalize(session: Session, upgrade_id: int) -> Upgrade:
    """Drop the previous generation: from here on there is no way back."""
    upgrade = lock_state(session, upgrade_id)
    if advance(State(upgrade.state), Action.FINALIZE) == State(upgrade.state):
        return upgrade
    lock_gallery(session, upgrade.gallery_id)
    earlier = session.scalar(
        select(Upgrade.id).where(Upgrade.to_generation_id == upgrade.from_generation_id, Upgrade.state == State.LIVE)
    )
    if earlier is not None:
        raise OtherUpgradeFirst(f"Upgrade {earlier} could still be rolled back; finalize it first.")
    reader = _open_upgrade(session, upgrade.gallery_id)
    if reader is not None and any(leg["generation"] == upgrade.from_generation_id for leg in reader.legs):
        raise OtherUpgradeFirst(f"Upgrade {reader.id} reads the generation that this would drop; let it end first.")
    upgrade = change_state(session, upgrade_id, Action.FINALIZE)
    drop_generation(session, upgrade.from_generation_id)
    return upgrade


def _switch(session: Session, gallery: Gallery, generation_id: int) -> None:
    """Make a generation active if it is complete; the gallery's row is held."""
    missing = count_missing(session, gallery.id, generation_id)
    if missing:
        raise NotComplete(
            f"{missing} live items have no current row in generation {generation_id} and none can be derived for them."
        )
    session.get_one(Generation, generation_id).state = "complete"
    gallery.active_generation_id = generation_id
    session.flush()  # the pointer moves before the state says so
    events.info("gallery.switched", gallery_id=gallery.id, generation_id=generation_id)


def _open_upgrade(session: Session, gallery_id: int) -> Upgrade | None:
    return session.scalar(select(Upgrade).where(Upgrade.gallery_id == gallery_id, Upgrade.state.in_(OPEN)))


def _delete_orphans(session: Session, upgrade: Upgrade) -> None:
    """Remove rows of items that were deleted while a batch was writing them."""
    deleted = select(Item.id).where(
        Item.gallery_id == upgrade.gallery_id,
        Item.revision > upgrade.start_revision,
        Item.deleted_at.is_not(None),
    )
    table = embeddings_table(upgrade.to_generation_id)
    ids = list(session.scalars(deleted))
    session.execute(text(f"DELETE FROM {table} WHERE item_id = ANY(:ids)"), {"ids": ids})
