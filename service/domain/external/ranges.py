"""Ranges of another store's keys: claimed from rows, transformed, written, and read again.

A range is claimed first (crash point `external.claimed`), and gone over in several passes. What a pass does with one
whose old side is as it was read before:
- while the upgrade transforms, and follows when it is ready: nothing;
- when it is verified, both sides are compared with what was recorded, and some rows are transformed anew;
- after the switch, nothing, either.
One that was written meanwhile is transformed again: all of it, in the same two steps. After the switch the new side is
its users' alone, and keys whose sides differ are named instead. Neither is a transaction with our rows, and both may be
done again with the same effect:
1. write the range (before it: crash point `external.transformed`, after it: `external.written`);
2. read it back, compare it with what was written, and record its digests (`external.recorded`).
Range and digests are of one moment of the old side: where that moved in between, both are done again, unless the store
notices writes: what changed is left to what it settles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service import logs
from service.connectors.store import ExternalStore, KeyRange, Rows, StoreAway, StoreRefused, part_of
from service.crash_points import crash_point
from service.db import Database
from service.domain.batch_state import BatchAction
from service.domain.claims import (
    Claim,
    change_rows,
    claim_rows,
    finish_claim,
    lock_claimed,
    lose_when_frozen,
    return_claim,
)
from service.domain.external.rows import AGAIN_WITHIN, Target, digest_of, id_digest_of
from service.domain.external.upgrades import lock_state
from service.domain.external_findings import Conflicts
from service.domain.external_state import ExternalState
from service.domain.refused_rows import RefusedKey, RefusedKeys
from service.tables import ExternalBatch, ExternalReference, ExternalUpgrade

VERIFIED_ROWS = 1_000  # are transformed anew, of all ranges together
NAMED_KEYS = 100
_TRIES = 3
_SETTLED_AT_ONCE = 1_000

events = logs.Events(__name__)

_OTHER = "The store does not keep what it is given: of range {after} to {upto}, {what}."
_RESTLESS = "Range {after} to {upto} was written faster than it could be transformed, {tries} times."


class Look(StrEnum):
    """What a pass does with a range."""

    FOLLOW = "follow"
    VERIFY = "verify"
    AFTER_SWITCH = "after_switch"


LOOKS = {
    ExternalState.TRANSFORMING: Look.FOLLOW,
    ExternalState.VERIFYING: Look.VERIFY,
    ExternalState.READY: Look.FOLLOW,
    ExternalState.LIVE: Look.AFTER_SWITCH,
}


@dataclass(frozen=True)
class Seen:
    """What is recorded of a range: how many rows it has, and the digests of their ids, of what was read, and of what
    the new side holds."""

    rows: int
    id_digest: str
    read_digest: str
    written_digest: str


@dataclass(frozen=True)
class Result:
    """What became of a range in a pass, as `ExternalBatch` has it; `new` are the new side's rows where they were
    written."""

    seen: Seen
    changed: bool = False
    repaired: bool = False
    sampled: int = 0
    largest_difference: float = 0.0
    conflicts: tuple[str, ...] = ()
    new: Rows | None = None


@dataclass(frozen=True)
class Work:
    """What a range is worked on with: its store, what its new side holds, and what the pass looks at. `draw` gives the
    places of so many of a number of rows."""

    store: ExternalStore
    target: Target
    notices_writes: bool
    look: Look
    sample: int
    draw: Callable[[int, int], list[int]]


def claim_range(database: Database, upgrade: ExternalUpgrade, lease_seconds: float) -> Claim[ExternalBatch] | None:
    """Claim a range of the newest pass; None when there is none to take. Committed at once, so that an attempt counts
    even if it kills the worker (crash point `external.claimed`)."""
    with database.session_scope() as session:
        wanted = (ExternalBatch.upgrade_id == upgrade.id) & (ExternalBatch.pass_number == upgrade.pass_number)
        wanted &= ExternalBatch.refused.is_(None)
        claim = claim_rows(session, ExternalBatch, wanted, ExternalBatch.number, 1, lease_seconds)
    if claim is not None:
        crash_point("external.claimed")
    return claim


def work_on_range(session: Session, claim: Claim[ExternalBatch], store: ExternalStore, target: Target) -> Result | None:
    """Do what the upgrade's state asks for with a claimed range, and record it, in the session's one transaction.

    None when there is nothing to do any more: the upgrade was paused or ended, or the claim was taken over. Raises
    `RowsRefused`, `TransformationFailed`, `StoreRefused` and `StoreAway`.
    """
    lose_when_frozen(session)
    upgrade = lock_state(session, claim.row.upgrade_id, shared=True)
    if not lock_claimed(session, claim):
        return None
    batch, look = claim.row, LOOKS.get(upgrade.state)
    if look is None or upgrade.pass_number != batch.pass_number:
        return_claim(session, claim)  # nothing was tried: it waits for a resume as if it had not been claimed
        return None

    share = VERIFIED_ROWS / max(1, upgrade.description.rows)
    generator = np.random.default_rng((upgrade.id, batch.pass_number, batch.number))
    work = Work(
        store,
        target,
        upgrade.description.notices_writes,
        look,
        math.ceil(share * batch.rows),
        _drawing(generator),
    )
    result = bring_along(work, KeyRange(batch.after, batch.upto), _seen(batch))
    if result.new is not None and batch.references_wanted:
        _draw_references(session, batch, result.new.keys, generator)
    _record(session, claim, result)
    return result


def bring_along(work: Work, keys: KeyRange, known: Seen | None) -> Result:
    """Bring one range of the new side to what the old one holds, and compare what the pass is to compare. `known` is
    what the pass before recorded of it. Raises as `work_on_range` does."""
    old = work.store.read(keys)
    same = known is not None and known.read_digest == digest_of(old)
    if known is None or not same:
        if known is not None and work.look is Look.AFTER_SWITCH:
            return Result(known, changed=True, conflicts=_conflicts(work, keys, old))
        return replace(_rewritten(work, keys, old), changed=known is not None)
    if work.look is not Look.VERIFY:
        return Result(known)

    if digest_of(work.store.read_new(keys)) != known.written_digest:
        return replace(_rewritten(work, keys, old), repaired=True)
    return _verified(work, keys, old, known)


def set_aside(session: Session, claim: Claim[ExternalBatch], reasons: dict[str, str]) -> None:
    """Give a claim back because of rows that cannot be transformed; it is not claimed again before a retry."""
    first = tuple(RefusedKey(key, reason) for key, reason in list(reasons.items())[:NAMED_KEYS])
    refused = RefusedKeys(len(reasons), first)
    change_rows(session, ExternalBatch, claim.holds(), BatchAction.RELEASE, refused=refused)
    events.warning("external.rows_refused", external_id=claim.row.upgrade_id, rows=len(reasons))


def _rewritten(work: Work, keys: KeyRange, old: Rows) -> Result:
    """Write a range of the new side. Raises `StoreRefused` where the store holds something else then, although nobody
    wrote to the old side meanwhile."""
    for tries in range(_TRIES):
        wanted = work.target.transform(old)
        crash_point("external.transformed")
        # 1.
        work.store.write(keys, wanted)
        crash_point("external.written")
        # 2.
        found = work.store.read_new(keys)
        different = _different(work.target, wanted, found)
        before, old = old, work.store.read(keys) if different else old
        if not different or (work.notices_writes and different <= _changed(before, old)):  # which it settles by itself
            seen = Seen(len(found.keys), id_digest_of(found.keys), digest_of(before), digest_of(found))
            return Result(seen, new=found)
        if work.notices_writes:
            work.store.settle(work.target.transform, _SETTLED_AT_ONCE)
        if digest_of(before) == digest_of(old) and (tries or not work.notices_writes):
            raise StoreRefused(_OTHER.format(after=keys.after, upto=keys.upto, what=_what_differs(wanted, found)))
    raise StoreAway(_RESTLESS.format(after=keys.after, upto=keys.upto, tries=_TRIES))


def _different(target: Target, wanted: Rows, found: Rows) -> set[str]:
    """Return the keys that only one of both has, or whose rows differ by more than the store's number format does."""
    if wanted.keys == found.keys and target.difference(wanted, found) <= target.kept_within:
        return set()
    places = {key: place for place, key in enumerate(found.keys)}
    different = set(wanted.keys) ^ set(found.keys)
    for place, key in enumerate(wanted.keys):
        if key in places:
            pair = (part_of(wanted, [place]), part_of(found, [places[key]]))
            if target.difference(*pair) > target.kept_within:
                different.add(key)
    return different


def _changed(before: Rows, after: Rows) -> set[str]:
    """Return the keys that were written or deleted on the old side between two readings of it."""
    rows = {key: place for place, key in enumerate(after.keys)}
    same = {
        key
        for place, key in enumerate(before.keys)
        if key in rows and digest_of(part_of(before, [place])) == digest_of(part_of(after, [rows[key]]))
    }
    return (set(before.keys) | set(after.keys)) - same


def _verified(work: Work, keys: KeyRange, old: Rows, known: Seen) -> Result:
    """Transform some rows anew and compare them with the new side's. Raises `StoreRefused` where they differ."""
    places = work.draw(work.sample, len(old.keys))
    if not places:
        return Result(known)
    wanted = work.target.transform(part_of(old, places))
    # What was read a moment ago had the recorded digest; a row that was written since is not there to be compared.
    new = work.store.read_new(keys)
    if new.keys != old.keys:
        return replace(_rewritten(work, keys, work.store.read(keys)), changed=True)
    difference = work.target.difference(wanted, part_of(new, places))
    if difference > AGAIN_WITHIN:
        if digest_of(work.store.read(keys)) != known.read_digest:
            return replace(_rewritten(work, keys, work.store.read(keys)), changed=True)
        what = f"rows that are transformed anew differ by {difference:.3g} of their norm"
        raise StoreRefused(_OTHER.format(after=keys.after, upto=keys.upto, what=what))
    return Result(known, sampled=len(places), largest_difference=difference)


def _conflicts(work: Work, keys: KeyRange, old: Rows) -> tuple[str, ...]:
    """Return the keys whose new side is not h's, of a range that was written on the old side around the switch."""
    new = work.store.read_new(keys)
    wanted = work.target.transform(old)
    places = {key: place for place, key in enumerate(new.keys)}
    alike = []
    for place, key in enumerate(wanted.keys):
        if key in places:
            pair = (part_of(wanted, [place]), part_of(new, [places[key]]))
            if work.target.difference(*pair) <= work.target.kept_within:
                alike.append(key)
    return tuple(sorted((set(wanted.keys) | set(new.keys)) - set(alike)))


def _what_differs(wanted: Rows, found: Rows) -> str:
    missing, more = set(wanted.keys) - set(found.keys), set(found.keys) - set(wanted.keys)
    if missing or more:
        named = ", ".join(repr(key) for key in sorted(missing or more)[:5])
        return f"{len(missing)} rows are missing and {len(more)} are too many ({named})"
    if wanted.keys != found.keys:
        return "rows come back in another order"
    return "vectors are other ones than were written"


def _drawing(generator: np.random.Generator) -> Callable[[int, int], list[int]]:
    def draw(wanted: int, rows: int) -> list[int]:
        places: list[int] = generator.choice(rows, min(wanted, rows), replace=False).tolist()
        return sorted(places)

    return draw


def _seen(batch: ExternalBatch) -> Seen | None:
    if batch.read_digest is None:
        return None
    assert batch.id_digest is not None
    assert batch.written_digest is not None
    return Seen(batch.rows, batch.id_digest, batch.read_digest, batch.written_digest)


def _draw_references(session: Session, batch: ExternalBatch, keys: list[str], generator: np.random.Generator) -> None:
    """Draw rows of a range to judge the upgrade by, once."""
    drawn = select(ExternalReference.key).where(
        ExternalReference.upgrade_id == batch.upgrade_id, ExternalReference.number == batch.number
    )
    if session.scalar(drawn.limit(1)) is not None or not keys:
        return
    places = generator.choice(len(keys), min(batch.references_wanted, len(keys)), replace=False)
    rows = [{"upgrade_id": batch.upgrade_id, "number": batch.number, "key": keys[place]} for place in places.tolist()]
    session.execute(insert(ExternalReference).values(rows).on_conflict_do_nothing())


def _record(session: Session, claim: Claim[ExternalBatch], result: Result) -> None:
    values: dict[str, object] = {
        "rows": result.seen.rows,
        "id_digest": result.seen.id_digest,
        "read_digest": result.seen.read_digest,
        "written_digest": result.seen.written_digest,
        "changed": result.changed,
        "repaired": result.repaired,
        "sampled": result.sampled,
        "largest_difference": result.largest_difference,
    }
    if result.conflicts:
        values["conflicts"] = Conflicts(len(result.conflicts), result.conflicts[:NAMED_KEYS])
    if not finish_claim(session, claim, **values):
        raise RuntimeError(f"Range {claim.row.number} left its claim while its row was locked.")
    crash_point("external.recorded")
