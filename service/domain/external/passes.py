"""Passes over the ranges of another store: beginning one, what one found, and when the new side has caught up."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, null, or_, select, update
from sqlalchemy.orm import Session

from service.connectors.store import ExternalStore
from service.domain.batch_state import UNFINISHED, BatchState
from service.domain.external.ranges import NAMED_KEYS
from service.domain.external.rows import Target, refusal_of
from service.domain.external.upgrades import change_state, fail_external_upgrade, lock_state
from service.domain.external_findings import Findings, Late
from service.domain.external_state import ExternalAction
from service.tables import ExternalBatch, ExternalUpgrade

_SETTLED_AT_ONCE = 1_000
_CARRIED = ("number", "after", "upto", "references_wanted", "rows", "id_digest", "read_digest", "written_digest")
_MOST_REPAIRS = 3

_OVERWRITTEN = (
    "{ranges} ranges of the new side were other than they were left, in {tries} passes one after the other: something"
    " else writes there. Retry the upgrade when it does not any more, or cancel."
)


@dataclass(frozen=True)
class RangeCounts:
    """How many ranges of a pass are in which state, have rows that were refused, had been written meanwhile, and had to
    be repaired; `rows_done` are those of the ranges that are done."""

    states: dict[BatchState, int]
    refused: int
    changed: int
    repaired: int
    rows_done: int

    @property
    def left(self) -> int:
        return sum(count for state, count in self.states.items() if state in UNFINISHED)


def begin_pass(session: Session, upgrade_id: int, action: ExternalAction | None = None) -> ExternalUpgrade:
    """Have every range gone over again, by what the pass before recorded, whose rows are removed; with an action, as
    its change of state. Raises `IllegalTransition`."""
    upgrade = lock_state(session, upgrade_id)
    values = {"pass_number": upgrade.pass_number + 1, "passed_at": null()}
    if action is not None:
        upgrade = change_state(session, upgrade_id, action, **values)
    else:
        changed = update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade_id)
        session.execute(changed.values(updated_at=func.now(), **values))
        session.refresh(upgrade)
    carried = [getattr(ExternalBatch, name) for name in _CARRIED]
    before = select(ExternalBatch.upgrade_id, ExternalBatch.pass_number + 1, *carried)
    before = before.where(ExternalBatch.upgrade_id == upgrade_id, ExternalBatch.pass_number == upgrade.pass_number - 1)
    session.execute(insert(ExternalBatch).from_select(["upgrade_id", "pass_number", *_CARRIED], before))
    older = ExternalBatch.pass_number < upgrade.pass_number
    session.execute(delete(ExternalBatch).where(ExternalBatch.upgrade_id == upgrade_id, older))
    return upgrade


def list_ranges(session: Session, upgrade: ExternalUpgrade, limit: int) -> list[ExternalBatch]:
    """Return up to `limit` ranges of the newest pass, those that are not done first, else in their order."""
    query = select(ExternalBatch).where(_of_pass(upgrade))
    order = (ExternalBatch.state == BatchState.DONE, ExternalBatch.number)
    return list(session.scalars(query.order_by(*order).limit(limit)))


def count_ranges(session: Session, upgrade: ExternalUpgrade) -> RangeCounts:
    """Return what is known of the newest pass."""
    counted = [func.count().filter(ExternalBatch.state == state) for state in BatchState]
    more = [func.count().filter(found) for found in (ExternalBatch.refused.is_not(None), ExternalBatch.changed)]
    rows = func.coalesce(func.sum(ExternalBatch.rows).filter(ExternalBatch.state == BatchState.DONE), 0)
    query = select(*counted, *more, func.count().filter(ExternalBatch.repaired), rows).where(_of_pass(upgrade))
    *states, refused, changed, repaired, rows_done = session.execute(query).one()
    return RangeCounts(dict(zip(BatchState, states, strict=True)), refused, changed, repaired, int(rows_done))


def is_pass_done(session: Session, upgrade: ExternalUpgrade) -> bool:
    """Return whether no range of the newest pass is left."""
    left = select(ExternalBatch.number).where(_of_pass(upgrade), ExternalBatch.state.in_(UNFINISHED)).limit(1)
    return session.scalar(left) is None


def fail_for_refused(session: Session, upgrade: ExternalUpgrade) -> bool:
    """Stop the upgrade if nothing is left of its pass but ranges with rows that cannot be transformed; return whether
    that is so."""
    query = select(ExternalBatch).where(_of_pass(upgrade), ExternalBatch.state.in_(UNFINISHED))
    left = session.scalars(query.order_by(ExternalBatch.number)).all()
    refused = [batch.refused for batch in left if batch.refused is not None]
    if not refused or len(refused) < len(left):
        return False
    reasons = {named.key: named.reason for each in refused for named in each.first}
    refusal = refusal_of(sum(each.count for each in refused), reasons)
    fail_external_upgrade(session, upgrade.id, f"{refusal} Replace or delete them and retry, or cancel.")
    return True


def note_pass(session: Session, upgrade: ExternalUpgrade) -> int:
    """Record that a pass is done, and return how many ranges had been written meanwhile."""
    query = select(func.count()).where(_of_pass(upgrade), ExternalBatch.changed)
    changed = session.scalar(query) or 0
    values = {"changed_ranges": changed, "passed_at": func.clock_timestamp()}
    session.execute(update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade.id).values(**values))
    return changed


def wants_pass(session: Session, upgrade: ExternalUpgrade, every_seconds: float) -> bool:
    """Return whether the ranges of an upgrade that is ready are to be gone over again: a cutover was asked for since
    they were, or that was long ago."""
    old = ExternalUpgrade.passed_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, every_seconds)
    asked = ExternalUpgrade.passed_at < ExternalUpgrade.cutover_requested_at
    query = select(ExternalUpgrade.id).where(ExternalUpgrade.id == upgrade.id, or_(old, asked))
    return session.scalar(query) is not None


def has_converged(upgrade: ExternalUpgrade, changed: int) -> bool:
    """Return whether another pass would not bring the new side nearer: nothing had been written, or not less than in
    the pass before."""
    return not changed or (upgrade.changed_ranges is not None and 0 < upgrade.changed_ranges <= changed)


def settle_few(store: ExternalStore, target: Target, most: int) -> bool:
    """Bring along rows that a store noticed to be written, and return whether at most `most` are left."""
    if len(store.changed_keys(most + 1)) <= most:
        return True
    store.settle(target.transform, max(most, _SETTLED_AT_ONCE))
    return False


def settle_all(store: ExternalStore, target: Target) -> bool:
    """Bring along rows that a store noticed to be written; return whether there may be more."""
    return store.settle(target.transform, _SETTLED_AT_ONCE) >= _SETTLED_AT_ONCE


def findings_of(session: Session, upgrade: ExternalUpgrade, store_rows: int) -> Findings:
    """Return what the pass found that compared both sides: see `docs/external.md`."""
    query = select(ExternalBatch).where(_of_pass(upgrade)).order_by(ExternalBatch.number)
    ids, written, found = hashlib.sha256(), hashlib.sha256(), session.scalars(query).all()
    for batch in found:
        ids.update(bytes.fromhex(batch.id_digest or ""))
        written.update(bytes.fromhex(batch.written_digest or ""))
    return Findings(
        passes=1 if upgrade.findings is None else upgrade.findings.passes + 1,
        ranges=len(found),
        rows=sum(batch.rows for batch in found),
        rows_in_store=store_rows,
        ids_sha256=ids.hexdigest(),
        new_side_sha256=written.hexdigest(),
        changed_ranges=sum(batch.changed for batch in found),
        repaired_ranges=sum(batch.repaired for batch in found),
        rows_transformed_anew=sum(batch.sampled for batch in found),
        largest_difference=max((batch.largest_difference for batch in found), default=0.0),
        number_format=upgrade.description.dtype,
    )


def check_repairs(session: Session, upgrade: ExternalUpgrade, findings: Findings) -> bool:
    """Return whether nothing had to be repaired; else record the findings, and stop the upgrade when that was so too
    often."""
    if not findings.repaired_ranges:
        return True
    session.execute(update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade.id).values(findings=findings))
    if findings.passes >= _MOST_REPAIRS:
        ranges, tries = findings.repaired_ranges, findings.passes
        fail_external_upgrade(session, upgrade.id, _OVERWRITTEN.format(ranges=ranges, tries=tries))
    return False


def late_of(session: Session, upgrade: ExternalUpgrade) -> Late:
    """Return what the pass after the switch found: how many ranges had been written on the old side around it, and in
    these the keys whose sides differ."""
    found = session.scalars(select(ExternalBatch).where(_of_pass(upgrade)).order_by(ExternalBatch.number)).all()
    conflicts = [batch.conflicts for batch in found if batch.conflicts is not None]
    keys = [key for each in conflicts for key in each.keys]
    return Late(
        changed_ranges=sum(batch.changed for batch in found),
        conflicts=sum(each.count for each in conflicts),
        conflicting_keys=tuple(keys[:NAMED_KEYS]),
    )


def _of_pass(upgrade: ExternalUpgrade) -> Any:
    return (ExternalBatch.upgrade_id == upgrade.id) & (ExternalBatch.pass_number == upgrade.pass_number)


def note_followed(session: Session, upgrade_id: int, late: Late) -> None:
    """Record that what was written around the switch was looked at, and what that found."""
    changed = update(ExternalUpgrade).where(ExternalUpgrade.id == upgrade_id)
    session.execute(changed.values(followed_at=func.now(), late=late))
