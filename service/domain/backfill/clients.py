"""Images that clients bring: items are leased to whoever asks, and their images are taken from whoever sends them.

A lease is no right: images of an item are taken as long as the item is leased to somebody, since each is compared with
what is known of the item. One whose lease has ended is leased to the next who asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.domain.backfill.backfills import NO_GENERATION, cancel_if_dropped, finish_if_done, get_backfill, lock_state
from service.domain.backfill.encoding import WantedItem
from service.domain.backfill.planning import start_backfill
from service.domain.backfill.work import Done, Encoding, NotTakingImages, work_on_images
from service.domain.backfill_state import BackfillState
from service.domain.batch_state import UNFINISHED
from service.domain.claims import claim_rows
from service.domain.gallery.images import ImageUpload
from service.domain.gallery.new_items import check_items
from service.domain.gallery.writes import GalleryWriter
from service.errors import Conflict, Unavailable, Unprocessable
from service.index.served import GenerationGone
from service.tables import Backfill, BackfillItem, Item

_NOT_LEASED = "The item is not leased to anybody: it is done, or still to be leased."
_SUPERSEDED = "The item was written again or deleted."
_CHANGED = "The item was written again meanwhile; it will be leased again."


class OtherSource(Conflict):
    """The backfill takes no images from clients."""


class GenerationsChange(Unavailable):
    """An upgrade ended while images were encoded."""


class NoImageTaken(Unprocessable):
    """Every image of the request was refused."""


@dataclass(frozen=True)
class Lease:
    """Items by id whose images are wanted until `expires_at`, None where there are none; `left` are not done yet, those
    that are leased to somebody included."""

    ids: list[str]
    expires_at: datetime | None
    left: int


@dataclass(frozen=True)
class BackfillResult:
    """What became of one image."""

    id: str
    status: Literal["backfilled", "refused", "skipped"]
    error: str | None = None


def lease_items(session: Session, backfill_id: int, limit: int, lease_seconds: float) -> Lease:
    """Lease the next items; none while others have them all. One that was not started yet is, by this.

    Raises `OtherSource` (409), and `NotTakingImages` (409) for a backfill that is paused, failed or cancelled.
    """
    backfill = _of_clients(session, backfill_id)
    if backfill.state is BackfillState.PLANNED:
        try:
            start_backfill(session, backfill_id)
        except GenerationGone as error:
            raise NotTakingImages(NO_GENERATION) from error
    backfill = lock_state(session, backfill_id, shared=True)
    if backfill.state is BackfillState.FINISHED:
        return Lease([], None, 0)
    if backfill.state is not BackfillState.RUNNING:
        raise NotTakingImages(f"Backfill {backfill_id} is {backfill.state}; it leases items while it is running.")
    of_backfill = BackfillItem.backfill_id == backfill_id
    claim = claim_rows(session, BackfillItem, of_backfill, BackfillItem.position, limit, lease_seconds)
    claimed = [] if claim is None else sorted(claim.rows, key=lambda row: row.position)
    query = select(Item.id, Item.external_id).where(Item.id.in_([row.item_id for row in claimed]))
    names = {row.id: row.external_id for row in session.execute(query)}
    left = select(func.count()).where(of_backfill, BackfillItem.state.in_(UNFINISHED))
    return Lease(
        [names[row.item_id] for row in claimed],
        claimed[0].lease_expires_at if claimed else None,
        session.scalar(left) or 0,
    )


def take_images(writer: GalleryWriter, backfill_id: int, uploads: Sequence[ImageUpload]) -> list[BackfillResult]:
    """Encode images of leased items, some in one transaction at a time, with one result per image in order.

    Raises `OtherSource` and `NotTakingImages` (409), `InvalidItem` (422), `NoImageTaken` (422) when none
    was, and `GenerationsChange` (503).
    """
    check_items([upload.item for upload in uploads], writer.settings.max_metadata_bytes)
    with writer.database.session_scope() as session:
        backfill = _of_clients(session, backfill_id)
        ids = _ids_of(session, backfill, [upload.item.external_id for upload in uploads])

    encoding = Encoding(writer.encoders)
    results: dict[str, BackfillResult] = {}
    at_once = writer.settings.backfill_batch_items
    for start in range(0, len(uploads), at_once):
        some = uploads[start : start + at_once]
        by_name = {upload.item.external_id: upload for upload in some if upload.item.external_id in ids}
        done = _take_some(writer, backfill_id, {name: ids[name] for name in by_name}, encoding, by_name)
        results |= {upload.item.external_id: _result(upload.item.external_id, ids, done) for upload in some}
        if done.revision:
            writer.replicas.sync(backfill.gallery_id, done.revision)
    with writer.database.session_scope() as session:
        finish_if_done(session, backfill_id)

    found = [results[upload.item.external_id] for upload in uploads]
    if all(result.status == "refused" for result in found):
        raise NoImageTaken(
            "No image of the request was taken.", [{"id": result.id, "detail": result.error} for result in found]
        )
    return found


def _take_some(
    writer: GalleryWriter, backfill_id: int, ids: dict[str, int], encoding: Encoding, uploads: dict[str, ImageUpload]
) -> Done:
    def read(item: WantedItem) -> bytes:
        return uploads[item.external_id].read()

    try:
        with writer.database.session_scope() as session:
            return work_on_images(session, backfill_id, list(ids.values()), encoding, read)
    except GenerationGone as error:
        with writer.database.session_scope() as session:
            cancel_if_dropped(session, backfill_id)
        raise GenerationsChange("A generation was dropped while the images were encoded; ask again.") from error


def _result(name: str, ids: dict[str, int], done: Done) -> BackfillResult:
    if name not in ids:
        return BackfillResult(name, "refused", "The backfill has no such item.")
    item_id = ids[name]
    if item_id in done.backfilled:
        return BackfillResult(name, "backfilled")
    if item_id in done.refused:
        return BackfillResult(name, "refused", done.refused[item_id])
    if item_id in done.changed:
        return BackfillResult(name, "skipped", _CHANGED)
    return BackfillResult(name, "skipped", _SUPERSEDED if item_id in done.superseded else _NOT_LEASED)


def _of_clients(session: Session, backfill_id: int) -> Backfill:
    backfill = get_backfill(session, backfill_id)
    if backfill.source != "client":
        raise OtherSource(f"Backfill {backfill_id} takes its images from {backfill.source}; no client brings them.")
    return backfill


def _ids_of(session: Session, backfill: Backfill, external_ids: Sequence[str]) -> dict[str, int]:
    query = (
        select(Item.external_id, Item.id)
        .join(BackfillItem, BackfillItem.item_id == Item.id)
        .where(BackfillItem.backfill_id == backfill.id, Item.gallery_id == backfill.gallery_id)
        .where(Item.external_id.in_(external_ids))
    )
    return {row.external_id: row.id for row in session.execute(query)}
