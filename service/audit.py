"""The audit: entries of who did what to what, in a chain of hashes that shows a change of any of them.

Entries are written in the transaction that does what they tell of, as its last step: there is neither an act without
its entry nor an entry without its act. That step holds an advisory lock until the transaction ends, so that entries
follow one another: each carries the SHA-256 over the one before and its own canonical JSON. Nothing else is waited for
while the lock is held. A death before the commit (crash point `audit.appended`) leaves neither act nor entry.

An entry names galleries, versions, upgrades and jobs, never an item: entries cannot be removed, and items can
(docs/erasure.md). Of items they have counts. Writes of items are not audited.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, delete, event, func, select, text
from sqlalchemy.orm import Session

from service import identity, logs
from service.advisory_locks import AdvisoryLock, hold
from service.canonical_json import canonical_json
from service.crash_points import crash_point
from service.identity import Actor
from service.tables import AuditEntry, Json

_GENESIS = "0" * 64  # what the first entry follows
_READ_AT_ONCE = 1_000


class Act(StrEnum):
    """What is audited, as `<subject>.<what became of it>`."""

    VERSION_REGISTERED = "model_version.registered"
    VERSION_NETWORKS_ADDED = "model_version.networks_added"
    VERSION_DELETED = "model_version.deleted"
    TRANSFORMATION_REGISTERED = "transformation.registered"
    TRANSFORMATION_CHANGED = "transformation.changed"
    TRANSFORMATION_DELETED = "transformation.deleted"
    TRAINING_STARTED = "training.started"
    JOB_CANCELLED = "job.cancelled"
    GALLERY_CREATED = "gallery.created"
    GALLERY_CHANGED = "gallery.changed"
    GALLERY_DELETED = "gallery.deleted"
    ITEMS_DELETED = "items.deleted"
    QUERY_SET_DELETED = "query_set.deleted"
    UPGRADE_OPENED = "upgrade.opened"
    UPGRADE_CHANGED = "upgrade.changed"
    UPGRADE_CANCELLED = "upgrade.cancelled"
    OVERRIDE = "upgrade.overridden"
    CUTOVER = "upgrade.cut_over"
    ROLLBACK = "upgrade.rolled_back"
    FINALIZE = "upgrade.finalized"
    BACKFILL_STARTED = "backfill.started"
    BACKFILL_CANCELLED = "backfill.cancelled"
    EXTERNAL_OPENED = "external_upgrade.opened"
    EXTERNAL_CANCELLED = "external_upgrade.cancelled"
    EXTERNAL_OVERRIDE = "external_upgrade.overridden"
    EXTERNAL_CUTOVER = "external_upgrade.cut_over"
    EXTERNAL_ROLLBACK = "external_upgrade.rolled_back"
    EXTERNAL_FINALIZE = "external_upgrade.finalized"
    ERASURE_ASKED = "erasure.asked"
    ERASED = "erasure.done"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    PRUNED = "audit.pruned"


@dataclass(frozen=True)
class Subject:
    """What an act is about: its kind, as `gallery`, and its name or id."""

    kind: str
    name: str | int


@dataclass(frozen=True)
class Recorded:
    """An act that its transaction is to audit."""

    act: Act
    subject: Subject
    actor: Actor
    before: Json | None = None
    after: Json | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Which entries are asked for: of one tenant, and of an act, a kind of subject, a subject and a time, from `since`
    to before `until`, where these are given."""

    tenant: str
    action: str | None = None
    subject_kind: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Verified:
    """What a walk over the chain found: how many entries there are, the first and the last one's hash, and what is
    wrong with the first entry that is not as it was written; None where all are."""

    entries: int
    head: str
    fault: str | None = None


def record(
    session: Session,
    act: Act,
    subject: Subject,
    *,
    before: Json | None = None,
    after: Json | None = None,
    reason: str | None = None,
    actor: Actor | None = None,
) -> None:
    """Have the session's transaction audit an act, as its last step; `before` and `after` are what changed, as JSON.

    `actor` is whoever is served, unless somebody else asked for what is done here.
    """
    if "audit" not in session.info:
        session.info["audit"] = []
        event.listen(session, "before_commit", _append)
    session.info["audit"].append(Recorded(act, subject, actor or actor_now(), before, after, reason))


def _append(session: Session) -> None:
    """Write the entries of a transaction that is about to commit."""
    if session.in_nested_transaction() or not session.info["audit"]:
        return
    session.flush()  # what this still writes may wait for others, who may wait for the lock
    hold(session, AdvisoryLock.AUDIT)
    query = select(AuditEntry.id, AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    last_id, last_hash = session.execute(query).one_or_none() or (0, _GENESIS)
    at = session.scalars(select(func.clock_timestamp())).one()
    for recorded in session.info["audit"]:
        last_id += 1
        entry = AuditEntry(
            id=last_id,
            at=at,
            key_id=recorded.actor.key_id,
            name=recorded.actor.name,
            tenant=recorded.actor.tenant,
            action=recorded.act,
            subject_kind=recorded.subject.kind,
            subject=str(recorded.subject.name),
            request_id=recorded.actor.request_id,
            before=recorded.before,
            after=recorded.after,
            reason=recorded.reason,
        )
        entry.hash = last_hash = _hash(last_hash, entry)
        session.add(entry)
    session.info["audit"] = []
    session.flush()
    crash_point("audit.appended")


def actor_now() -> Actor:
    """Return whoever is served here now."""
    who = identity.current.get()
    return Actor(who.key_id, who.name, who.tenant, logs.request_id.get())


def content_of(entry: AuditEntry) -> Json:
    """Return what an entry says, as the JSON that is hashed."""
    return {
        "id": entry.id,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "key_id": entry.key_id,
        "name": entry.name,
        "tenant": entry.tenant,
        "action": entry.action,
        "subject_kind": entry.subject_kind,
        "subject": entry.subject,
        "request_id": entry.request_id,
        "before": entry.before,
        "after": entry.after,
        "reason": entry.reason,
    }


def _hash(before: str, entry: AuditEntry) -> str:
    return hashlib.sha256(bytes.fromhex(before) + canonical_json(content_of(entry))).hexdigest()


def list_entries(session: Session, wanted: Wanted, after_id: int, limit: int) -> list[AuditEntry]:
    """Return up to `limit` entries with ids above `after_id`, by id."""
    query = _wanted_entries(wanted).where(AuditEntry.id > after_id)
    return list(session.scalars(query.order_by(AuditEntry.id).limit(limit)))


def newest_entries(session: Session, wanted: Wanted, before_id: int | None, limit: int) -> list[AuditEntry]:
    """Return up to `limit` entries, with ids below `before_id` if there is one, newest first."""
    query = _wanted_entries(wanted)
    query = query if before_id is None else query.where(AuditEntry.id < before_id)
    return list(session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit)))


def _wanted_entries(wanted: Wanted) -> Select[AuditEntry]:
    query = select(AuditEntry).where(AuditEntry.tenant == wanted.tenant)
    equal = {
        AuditEntry.action: wanted.action,
        AuditEntry.subject_kind: wanted.subject_kind,
        AuditEntry.subject: wanted.subject,
    }
    query = query.where(*(column == value for column, value in equal.items() if value is not None))
    if wanted.since is not None:
        query = query.where(AuditEntry.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEntry.at < wanted.until)
    return query


def entries_about(session: Session, subject: Subject) -> list[AuditEntry]:
    """Return every entry about one subject, by id."""
    about = (AuditEntry.subject_kind == subject.kind, AuditEntry.subject == str(subject.name))
    return list(session.scalars(select(AuditEntry).where(*about).order_by(AuditEntry.id)))


def head_of(session: Session) -> str:
    """Return the hash of the newest entry: kept elsewhere, it shows later whether entries were cut off at the end."""
    return session.scalar(select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)) or _GENESIS


def verify(session: Session, head: str | None = None) -> Verified:
    """Walk over the chain, in a snapshot. `head` is a hash that an entry had at another time, and must have still."""
    entries, seen_head = 0, head is None
    before_id, before_hash = _start(session)
    for entry in _all(session):
        if entry.id != before_id + 1:
            missing = f"{before_id + 1}" if entry.id == before_id + 2 else f"{before_id + 1} to {entry.id - 1}"
            return Verified(entries, before_hash, f"Before entry {entry.id}, what was {missing} is missing.")
        if _hash(before_hash, entry) != entry.hash:
            fault = f"Entry {entry.id} ({entry.action}) is not what was written after the one before it."
            return Verified(entries, before_hash, fault)
        before_id, before_hash, entries = entry.id, entry.hash, entries + 1
        seen_head = seen_head or entry.hash == head
    if not seen_head:
        fault = f"No entry has the hash {head}: the end, after entry {before_id}, is cut off."
        return Verified(entries, before_hash, fault)
    return Verified(entries, before_hash)


def _all(session: Session) -> Iterator[AuditEntry]:
    query = select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=_READ_AT_ONCE)
    return iter(session.scalars(query))


def _start(session: Session) -> tuple[int, str]:
    """Return the id and the hash of what the first entry follows: nothing, or what the newest pruning removed."""
    pruned = select(AuditEntry).where(AuditEntry.action == Act.PRUNED).order_by(AuditEntry.id.desc()).limit(1)
    entry = session.scalar(pruned)
    if entry is None or entry.after is None:
        return 0, _GENESIS
    return int(entry.after["through"]), str(entry.after["hash"])


def prune(session: Session, before: datetime) -> int:
    """Remove the entries from before a time, but for the newest one, and return how many they were: the one act that
    removes some.

    It is an entry itself, with the id and the hash of the last one that it removed, from which the chain goes on.
    """
    hold(session, AdvisoryLock.AUDIT)
    kept = select(func.min(AuditEntry.id)).where(AuditEntry.at >= before).scalar_subquery()
    newest = select(func.max(AuditEntry.id)).scalar_subquery()
    gone = select(AuditEntry).where(AuditEntry.id < func.coalesce(kept, newest)).order_by(AuditEntry.id.desc()).limit(1)
    last = session.scalar(gone)
    if last is None:
        return 0
    through: dict[str, Any] = {"through": last.id, "hash": last.hash}
    session.execute(text("ALTER TABLE audit DISABLE TRIGGER append_only"))
    removed = session.scalars(delete(AuditEntry).where(AuditEntry.id <= last.id).returning(AuditEntry.id)).all()
    session.execute(text("ALTER TABLE audit ENABLE TRIGGER append_only"))
    record(session, Act.PRUNED, Subject("audit", last.id), after={**through, "entries": len(removed)})
    return len(removed)
