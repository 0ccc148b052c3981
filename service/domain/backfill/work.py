"""The work of a backfill: items are claimed from rows, and their embeddings and marks are committed together.

The steps, the last three in one transaction, with their crash points and what a crash there leaves:
1. claim items, in a short transaction that counts the attempt (`backfill.claimed`): the claim, which the next claimer
   takes over when its lease has ended;
2. lock the items' rows; read and encode their images (`backfill.encoded`): the same, since the transaction is gone;
3. put the rows in the place of h's, under the gallery's lock (`backfill.written`);
4. mark the items; the caller commits (`backfill.committed`): the embeddings and the marks together.
A client that sends images does the last three, and its lease stands for the claim.

Items that a worker died of, or failed with, are claimed one at a time, so that one of them alone is refused in the end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from service import logs
from service.crash_points import crash_point
from service.db import Database
from service.domain.backfill.backfills import lock_state
from service.domain.backfill.encoding import Reader, ReadImage, reencode, target_of, who_knows
from service.domain.backfill_state import BackfillState
from service.domain.batch_state import BatchAction, BatchState
from service.domain.claims import (
    Claim,
    change_rows,
    claim_rows,
    finish_claim,
    is_claimable,
    lock_claimed,
    lose_when_frozen,
    return_claim,
    seconds_from_now,
)
from service.domain.gallery.better_rows import put_better_rows
from service.domain.gallery.generations import get_stored_generation
from service.errors import Conflict
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Backfill, BackfillItem, BackfillOutcome
from service.vectors.rows import EmbeddingRows

events = logs.Events(__name__)


class NotTakingImages(Conflict):
    """The backfill is not running."""


@dataclass(frozen=True)
class Encoding:
    """What encodes: the networks, how many images are read at once, how long one whose place does not answer is left
    alone, and what raises, often asked, once nobody wants the work any more."""

    encoders: Encoders
    reads_at_once: int = 1
    retry_seconds: float = 0.0
    check_wanted: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Done:
    """What became of items: the gallery's revision, and by item id why some were refused, or are to be tried again
    since their images are `away`; `superseded` were written again or deleted before; `changed` were while their images
    were encoded, and wait to be looked at anew."""

    revision: int
    backfilled: frozenset[int]
    superseded: frozenset[int]
    refused: dict[int, str]
    away: dict[int, str]
    changed: frozenset[int]


def load_encoders(session: Session, encoders: Encoders, backfill: Backfill) -> None:
    """Load what the backfill encodes with. Raises `BlobMissing`, `BlobDamaged` or `ArtifactUnusable` (409), and
    `GenerationGone`."""
    generation = get_stored_generation(session, backfill.gallery_id, backfill.generation_id)
    for stored in (generation, who_knows(session, generation, backfill.source)):
        if stored is not None:
            encoders.get(stored.version)


def claim_items(database: Database, settings: Settings, backfill_id: int) -> Claim[BackfillItem] | None:
    """Claim the next items; None when there are none to take. Committed at once, so that an attempt counts even if it
    kills the worker."""
    # 1.
    with database.session_scope() as session:
        of_backfill = BackfillItem.backfill_id == backfill_id
        first = select(BackfillItem.attempts).where(of_backfill, is_claimable(BackfillItem))
        free = first.order_by(BackfillItem.position).limit(1).with_for_update(skip_locked=True)
        attempts = session.scalar(free)
        if attempts is None:
            return None
        alike = of_backfill & (BackfillItem.attempts == attempts)
        limit = 1 if attempts else settings.backfill_batch_items
        claim = claim_rows(session, BackfillItem, alike, BackfillItem.position, limit, settings.lease_seconds)
    if claim is not None:
        crash_point("backfill.claimed")
    return claim


def work_on_items(session: Session, claim: Claim[BackfillItem], encoding: Encoding, read: ReadImage) -> Done | None:
    """Encode the claimed items and mark them, in the session's one transaction.

    None when there is nothing to do any more: the backfill was paused or ended, or the claim was taken over. Raises
    `GenerationGone`.
    """
    # 2.
    lose_when_frozen(session)
    backfill = lock_state(session, claim.row.backfill_id, shared=True)
    items = lock_claimed(session, claim)
    if not items:
        return None
    if backfill.state is not BackfillState.RUNNING:
        return_claim(session, claim)  # nothing was tried: they wait for a resume as if they had not been claimed
        return None
    return _encode_items(session, backfill, [item.item_id for item in items], encoding, read)


def work_on_images(
    session: Session, backfill_id: int, item_ids: Sequence[int], encoding: Encoding, read: ReadImage
) -> Done:
    """Encode images of leased items that a client sent and mark the items, in the session's one transaction; whoever
    leased them. Items that are not leased, or done by now, are in no set of what is returned.

    Raises `NotTakingImages` (409) unless the backfill is running, and `GenerationGone`.
    """
    # 2.
    backfill = lock_state(session, backfill_id, shared=True)
    if backfill.state is not BackfillState.RUNNING:
        raise NotTakingImages(f"Backfill {backfill_id} is {backfill.state}; it takes images while it is running.")
    leased = select(BackfillItem.item_id).where(
        BackfillItem.backfill_id == backfill_id,
        BackfillItem.item_id.in_(item_ids),
        BackfillItem.state == BatchState.CLAIMED,
    )
    locked = session.scalars(leased.order_by(BackfillItem.position).with_for_update()).all()
    return _encode_items(session, backfill, locked, encoding, read)


def _encode_items(
    session: Session, backfill: Backfill, item_ids: Sequence[int], encoding: Encoding, read: ReadImage
) -> Done:
    """Do all steps but the first for items whose rows are locked, and count the seconds that they took."""
    began = time.monotonic()
    generation = get_stored_generation(session, backfill.gallery_id, backfill.generation_id)
    target = target_of(session, generation, backfill.source, item_ids)
    reader = Reader(read, encoding.reads_at_once, encoding.check_wanted)
    found = reencode(encoding.encoders, target, reader)
    crash_point("backfill.encoded")

    # 3.
    revision, written = 0, frozenset[int]()
    if found.rows:
        revision, written = put_better_rows(session, generation, EmbeddingRows.concatenate(found.rows))

    # 4.
    wanted = {item.item_id for item in target.wanted}
    done = Done(
        revision=revision,
        backfilled=written,
        superseded=frozenset(set(item_ids) - wanted),
        refused=found.refused,
        away=found.away,
        changed=frozenset(wanted - written - set(found.refused) - set(found.away)),
    )
    _mark(session, backfill.id, done, encoding)
    spent = Backfill.spent_seconds + (time.monotonic() - began)
    session.execute(update(Backfill).where(Backfill.id == backfill.id).values(spent_seconds=spent))
    return done


def refuse_items(session: Session, claim: Claim[BackfillItem], sentence: str) -> None:
    """Give claimed items up for good, and list them with the reason."""
    finish_claim(session, claim, outcome="refused", error=sentence)


def _mark(session: Session, backfill_id: int, done: Done, encoding: Encoding) -> None:
    def of(ids: frozenset[int]) -> ColumnElement[bool]:
        return (BackfillItem.backfill_id == backfill_id) & BackfillItem.item_id.in_(sorted(ids))

    outcomes: list[tuple[BackfillOutcome, str | None, frozenset[int]]]
    outcomes = [("backfilled", None, done.backfilled), ("superseded", None, done.superseded)]
    outcomes += [("refused", reason, frozenset({id_})) for id_, reason in done.refused.items()]
    for outcome, reason, ids in outcomes:
        if ids:
            values = {"outcome": outcome, "error": reason, "done_at": func.clock_timestamp()}
            change_rows(session, BackfillItem, of(ids), BatchAction.FINISH, **values)
    for id_, reason in done.away.items():
        retry_at = seconds_from_now(encoding.retry_seconds)
        change_rows(session, BackfillItem, of(frozenset({id_})), BatchAction.RELEASE, error=reason, retry_at=retry_at)
    if done.changed:
        change_rows(session, BackfillItem, of(done.changed), BatchAction.RELEASE, attempts=BackfillItem.attempts - 1)
    events.info(
        "backfill.items_recorded",
        backfill_id=backfill_id,
        backfilled=len(done.backfilled),
        refused=len(done.refused),
        away=len(done.away),
        superseded=len(done.superseded),
        changed=len(done.changed),
    )
