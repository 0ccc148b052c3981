"""Cutover, rollback and finalize: the moments when a gallery's active generation changes or becomes final.

Cutover and rollback are one function, `_switch`, used both ways. Each is one transaction that holds the upgrade's
state and the gallery's row (so no write is under way), checks promise 2, and then moves the pointer and the state:

1. take the gallery's row (crash point `switch.locked`);
2. at a cutover, transform what changed since the verified revision (`cutover.caught_up`): writers wait only for that;
   at a rollback, delete what would be lost, if that was accepted;
3. check that the generation is complete, move the pointer (`switch.moved`), and the state with it;
4. commit, which the caller does (`switch.committed`): replicas flip when they next read the gallery's row.
Finalize is one transaction too: it takes the gallery's row (`finalize.locked`), moves the state, gives the previous
generation up, and is committed by the caller (`switch.committed`, which a cancel also passes). After a rollback, a
finalize and a cancel the caller removes what was given up (`service.domain.indexes.removal`).
A crash before the commit leaves everything as it was. The check looks at what changed since the generation was last
known to be complete: since it was verified, or since it stopped being the active one.
"""

from dataclasses import replace

from sqlalchemy import BigInteger, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from service import logs
from service.audit import Act, Subject, actor_now, record
from service.crash_points import crash_point
from service.domain.gallery.current_rows import delete_orphans, missing_items
from service.domain.gallery.galleries import find_open_upgrade, lock_gallery
from service.domain.gallery.generations import GenerationKey, change_generation, drop_generation
from service.domain.gallery.writes import delete_items
from service.domain.generation_stage import GenerationAction
from service.domain.guardrails import BakeResult, Outcome
from service.domain.judging.reports import GatesHold, asked_now, check_verdict, is_stale, newest_report
from service.domain.upgrade.batches import ItemRange, Transform, transform_items
from service.domain.upgrade.trials import bake_end, check_not_baked, end_bake, is_baked
from service.domain.upgrade.upgrades import change_state, lock_state
from service.domain.upgrade_state import OPEN, Action, State, advance
from service.errors import Conflict
from service.identity import Actor
from service.tables import Gallery, Item, Json, Upgrade

events = logs.Events(__name__)


class TooFarBehind(Conflict):
    """More was written than a cutover may look at while writers wait: catch up first."""


class ReportStale(Conflict):
    """More of the gallery changed since the newest report than it may: judge it again first."""


class NotAskedFor(Conflict):
    """Nobody asks for the cutover any more."""


class NotComplete(Conflict):
    """Live items lack a current row in the generation that should become active."""


class RollbackWouldLose(NotComplete):
    """Items were written since the cutover that the previous generation does not have."""


class OtherUpgradeFirst(Conflict):
    """Another upgrade of the gallery stands on the generation."""


# Why a cutover is refused.
_WITHDRAWN = "The cutover was asked for, and the request was withdrawn."
_STALE = "Too much of the gallery changed since report {number}; another one is made first."
_CHANGES_WAIT = "More than {changes} changes wait for catch-up; the cutover follows it."
# Why a cutover or a rollback is refused.
_ITEMS_LACK_ROWS = (
    "{count} live items have no current row in generation {generation} and none can be derived for them: {names}."
)
# Why a rollback is refused.
_NEXT_UPGRADE_OPEN = "Upgrade {upgrade} starts from this one's generation; cancel it first."
_LATER_UPGRADE_LIVE = "A later upgrade is live on top of this one; roll that one back first."
_ITEMS_LOST = (
    "A rollback would lose {count} item(s) that only the new generation has: {names}. Repeat it with accept_loss=true"
    " to delete them."
)
# Why a finalize is refused.
_EARLIER_UPGRADE_LIVE = "Upgrade {upgrade} could still be rolled back; finalize it first."
_GENERATION_READ = "Upgrade {upgrade} reads the generation that this would drop; let it end first."


def request_cutover(session: Session, upgrade_id: int, override: str | None = None) -> Upgrade:
    """Ask the worker to cut over; refuse at once (409) unless the upgrade is ready or live, and where a gate failed
    (`GatesHold`, which names it). `override` is the reason why it should go live although the newest report failed."""
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, Action.CUTOVER) == upgrade.state:
        return upgrade

    report = newest_report(session, upgrade_id)
    upgrade.cutover_requested_at = func.now()
    number = None if report is None else report.number
    upgrade.decision = asked_now(number, override)
    session.flush()
    session.refresh(upgrade)
    check_verdict(session, upgrade)
    if override is not None:
        record(session, Act.OVERRIDE, Subject("upgrade", upgrade_id), after={"report": number}, reason=override)
    return upgrade


def wants_cutover(session: Session, upgrade: Upgrade) -> bool:
    """Return whether a ready upgrade is to go live now: that was asked for, or it does so by itself on its verdict."""
    if upgrade.cutover_requested_at is not None or upgrade.cutover == "manual":
        return upgrade.cutover_requested_at is not None
    try:
        check_verdict(session, upgrade)
    except GatesHold:
        return False
    return True


def withdraw_cutover(session: Session, upgrade_id: int) -> Upgrade:
    """Take the request back; what has gone live meanwhile stays live."""
    upgrade = lock_state(session, upgrade_id)
    if upgrade.state in OPEN:
        upgrade.decision = None
    upgrade.cutover_requested_at = None
    return upgrade


def cut_over(session: Session, upgrade_id: int, transform: Transform, max_changes: int) -> Upgrade:
    """Transform the last remainder and make the next generation active.

    Raises `NotAskedFor` when the request was withdrawn, `GatesHold` when the verdict keeps it from going live,
    `ReportStale` when that is of other rows, `TooFarBehind` when more than `max_changes` changes came since the
    verified revision, `NotComplete` when an item cannot be transformed, and `IllegalTransition` unless it is ready.
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, Action.CUTOVER) == upgrade.state:
        return upgrade
    if upgrade.cutover_requested_at is None and upgrade.cutover == "manual":
        raise NotAskedFor(_WITHDRAWN)
    decision = check_verdict(session, upgrade)

    # 1.
    gallery = lock_gallery(session, upgrade.gallery_id)
    crash_point("switch.locked")
    report = newest_report(session, upgrade_id)
    if report is not None and is_stale(report, gallery) and not upgrade.observe:
        raise ReportStale(_STALE.format(number=report.number))
    verified, target = upgrade.verified_revision, GenerationKey(gallery.id, upgrade.to_generation_id)
    if gallery.revision - verified > max_changes:
        raise TooFarBehind(_CHANGES_WAIT.format(changes=max_changes))

    # 2.
    missing = missing_items(session, target, verified)
    if missing:
        transform_items(session, upgrade, ItemRange(missing[0], missing[-1], verified), transform)
    delete_orphans(session, target, verified, gallery.revision)
    crash_point("cutover.caught_up")

    # 3.
    _switch(session, gallery, target, verified)
    _record_switch(session, Act.CUTOVER, upgrade, decision.audited(), decision.reason, decision.asked_by)
    return change_state(
        session,
        upgrade_id,
        Action.CUTOVER,
        cutover_requested_at=None,
        live_revision=gallery.revision,
        decision=decision,
        bake_ends_at=bake_end(upgrade),
    )


def roll_back(
    session: Session, upgrade_id: int, *, accept_loss: bool = False, guardrails: str | None = None
) -> Upgrade:
    """Make the previous generation active again and drop the next one; `guardrails` says why these do so by themselves.

    Raises `RollbackWouldLose`, which names them, for items that the previous generation does not have (vectors imported
    in the new space since the cutover); with `accept_loss` they are deleted. Raises `OtherUpgradeFirst` while another
    upgrade stands on the next generation, and `IllegalTransition` unless the upgrade is live.
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, Action.ROLLBACK) == upgrade.state:
        return upgrade

    # 1.
    gallery = lock_gallery(session, upgrade.gallery_id)
    crash_point("switch.locked")
    check_rollback(session, upgrade, gallery)

    # 2.
    since, target = upgrade.live_revision or 0, GenerationKey(gallery.id, upgrade.from_generation_id)
    names = _missing_names(session, target, since)
    if names and not accept_loss:
        raise RollbackWouldLose(_ITEMS_LOST.format(count=len(names), names=_listed(names)))
    if names:
        delete_items(session, gallery.id, names)

    # 3.
    _switch(session, gallery, target, since)
    if is_baked(upgrade):
        sentence = "The bake ended: the upgrade was rolled back by request."
        end_bake(session, upgrade, BakeResult(Outcome.ENDED, sentence, None))
    by = "request" if guardrails is None else "guardrails"
    _record_switch(session, Act.ROLLBACK, upgrade, {"by": by, "accepted_loss": len(names)}, guardrails)
    upgrade = change_state(session, upgrade_id, Action.ROLLBACK)
    drop_generation(session, upgrade.to_generation_id)
    return upgrade


def check_rollback(session: Session, upgrade: Upgrade, gallery: Gallery) -> None:
    """Raises `OtherUpgradeFirst` while another upgrade stands on the next generation of one that is live."""
    following = find_open_upgrade(session, gallery.id)
    if following is not None:
        raise OtherUpgradeFirst(_NEXT_UPGRADE_OPEN.format(upgrade=following.id))
    if gallery.active_generation_id != upgrade.to_generation_id:
        raise OtherUpgradeFirst(_LATER_UPGRADE_LIVE)


def finalize(session: Session, upgrade_id: int) -> Upgrade:
    """Drop the previous generation: from here on there is no way back.

    Raises `BakeRuns` while the upgrade is baked, `OtherUpgradeFirst` while another upgrade needs that generation, and
    `IllegalTransition` unless the upgrade is live.
    """
    upgrade = lock_state(session, upgrade_id)
    if advance(upgrade.state, Action.FINALIZE) == upgrade.state:
        return upgrade
    check_not_baked(upgrade)

    lock_gallery(session, upgrade.gallery_id)
    crash_point("finalize.locked")
    check_finalize(session, upgrade)

    upgrade = change_state(session, upgrade_id, Action.FINALIZE)
    drop_generation(session, upgrade.from_generation_id)
    dropped = {"dropped_generation": upgrade.from_generation_id}
    record(session, Act.FINALIZE, Subject("upgrade", upgrade_id), after=dropped)
    return upgrade


def check_finalize(session: Session, upgrade: Upgrade) -> None:
    """Raises `OtherUpgradeFirst` while another upgrade needs the previous generation of one that is live."""
    earlier = session.scalar(
        select(Upgrade.id).where(Upgrade.to_generation_id == upgrade.from_generation_id, Upgrade.state == State.LIVE)
    )
    if earlier is not None:
        raise OtherUpgradeFirst(_EARLIER_UPGRADE_LIVE.format(upgrade=earlier))
    reader = find_open_upgrade(session, upgrade.gallery_id)
    if reader is not None and any(leg.generation_id == upgrade.from_generation_id for leg in reader.legs):
        raise OtherUpgradeFirst(_GENERATION_READ.format(upgrade=reader.id))


def _record_switch(
    session: Session, act: Act, upgrade: Upgrade, decided: Json, reason: str | None, asked_by: Actor | None = None
) -> None:
    """Audit that the active generation changes, as the act of whoever asked for it: a worker may do it for them. What
    comes by itself is in the audit of the gallery's tenant."""
    active, other = upgrade.from_generation_id, upgrade.to_generation_id
    before, after = (other, active) if act is Act.ROLLBACK else (active, other)
    tenant = session.scalars(select(Gallery.tenant).where(Gallery.id == upgrade.gallery_id)).one()
    record(
        session,
        act,
        Subject("upgrade", upgrade.id),
        before={"generation": before},
        after={"generation": after, **decided},
        reason=reason,
        actor=asked_by or replace(actor_now(), tenant=tenant),
    )


def _switch(session: Session, gallery: Gallery, target: GenerationKey, complete_at: int) -> None:
    """Make a generation active if it is complete, as it was at revision `complete_at`. The gallery's row is held.

    Raises `NotComplete`.
    """
    names, generation_id = _missing_names(session, target, complete_at), target.generation_id
    if names:
        lacking = _ITEMS_LACK_ROWS.format(count=len(names), generation=generation_id, names=_listed(names))
        raise NotComplete(lacking)

    change_generation(session, generation_id, GenerationAction.COMPLETE)
    gallery.active_generation_id = generation_id
    session.flush()  # the pointer moves before the state says so
    crash_point("switch.moved")
    events.info("gallery.switched", gallery_id=gallery.id, generation_id=generation_id)


def _missing_names(session: Session, generation: GenerationKey, after_revision: int) -> list[str]:
    """Return the external ids of what `missing_items` finds."""
    item_ids = missing_items(session, generation, after_revision)
    ids = literal(item_ids, ARRAY(BigInteger))  # one value, of any length; a list of values has 65,535 at most
    return list(session.scalars(select(Item.external_id).where(Item.id == func.any(ids)).order_by(Item.id)))


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
