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
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from service import logs
from service.crash_points import crash_point
from service.db import Database
from service.domain.backfill.backfills import lock_state
from service.domain.backfill.encoding import Reader, ReadImage, reencode, target_of, who_knows
from service.domain.backfill_state import BackfillState
from service.domain.batch_state import BatchAction, BatchState
from service.domain.claims import change_rows, claim_rows, is_claimable, pause_seconds, seconds_from_now
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
class ItemsClaim:
    """The right to work on some items, until their token is replaced."""

    backfill_id: int
    token: uuid.UUID
    attempts: int
    last_error: str | None


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


def claim_items(database: Database, settings: Settings, backfill_id: int) -> ItemsClaim | None:
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
        rows = claim_rows(session, BackfillItem, alike, BackfillItem.position, limit, settings.lease_seconds)
        if not rows:
            return None
    crash_point("backfill.claimed")
    assert rows[0].claim_token is not None
    return ItemsClaim(backfill_id, rows[0].claim_token, rows[0].attempts, rows[0].error)


def work_on_items(session: Session, claim: ItemsClaim, encoding: Encoding, read: ReadImage) -> Done | None:
    """Encode the claimed items and mark them, in the session's one transaction.

    None when there is nothing to do any more: the backfill was paused or ended, or the claim was taken over. Raises
    `GenerationGone`.
    """
    # 2.
    backfill = lock_state(session, claim.backfill_id, shared=True)
    item_ids = _lock_items(session, (BackfillItem.state == BatchState.CLAIMED) & _is_of(claim))
    if not item_ids:
        return None
    if backfill.state is not BackfillState.RUNNING:
        return_items(session, claim)  # nothing was tried: they wait for a resume as if they had not been claimed
        return None
    return _encode_items(session, backfill, item_ids, encoding, read)


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
    of_items = (BackfillItem.backfill_id == backfill_id) & BackfillItem.item_id.in_(item_ids)
    leased = _lock_items(session, of_items & (BackfillItem.state == BatchState.CLAIMED))
    return _encode_items(session, backfill, leased, encoding, read)


def _encode_items(
    session: Session, backfill: Backfill, item_ids: Sequence[int], encoding: Encoding, read: ReadImage
) -> Done:
    """Do all steps but the first for items whose rows are locked, and count the seconds that they took."""
    began = time.monotonic()
    # Whoever is frozen in the middle loses its connection, and with it the items, after this time.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '300s'"))
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


def refuse_items(session: Session, claim: ItemsClaim, sentence: str) -> None:
    """Give claimed items up for good, and list them with the reason."""
    values = {"outcome": "refused", "error": sentence, "done_at": func.clock_timestamp()}
    change_rows(session, BackfillItem, _is_of(claim), BatchAction.FINISH, **values)


def release_items(session: Session, claim: ItemsClaim, sentence: str, retry_base_seconds: float) -> None:
    """Give a claim back after a failure, with the reason; each item is tried again by itself, after a pause."""
    retry_at = seconds_from_now(pause_seconds(claim.attempts, retry_base_seconds))
    change_rows(session, BackfillItem, _is_of(claim), BatchAction.RELEASE, error=sentence, retry_at=retry_at)


def return_items(session: Session, claim: ItemsClaim) -> None:
    """Give a claim back as if the items had not been tried."""
    change_rows(session, BackfillItem, _is_of(claim), BatchAction.RELEASE, attempts=BackfillItem.attempts - 1)


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


def _lock_items(session: Session, which: ColumnElement[bool]) -> list[int]:
    query = select(BackfillItem.item_id).where(which).order_by(BackfillItem.position).with_for_update()
    return list(session.scalars(query))


def _is_of(claim: ItemsClaim) -> ColumnElement[bool]:
    """Return the condition that an item is a claimed one, and that nobody has taken it over."""
    return (BackfillItem.backfill_id == claim.backfill_id) & (BackfillItem.claim_token == claim.token)
