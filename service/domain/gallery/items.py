"""Items: looking at them, one by one or in pages, and deleting them."""

from dataclasses import dataclass

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session, defer

from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import known_uncertainty
from service.domain.gallery.new_items import check_external_id
from service.domain.gallery.writes import GalleryWriter, delete_items
from service.errors import NotFound
from service.tables import Item, embeddings_table
from service.vectors.rows import Origin


class UnknownItem(NotFound):
    """The gallery has no live item with this id."""


class NoThumbnail(NotFound):
    """The item has no thumbnail: it was imported, or the gallery keeps none."""


def get_item(session: Session, gallery_name: str, external_id: str) -> Item:
    """Return a live item, or raise `UnknownItem` (404)."""
    check_external_id(external_id)
    gallery = get_gallery(session, gallery_name)
    item = session.scalar(_live_items(gallery.id).where(Item.external_id == external_id))
    if item is None:
        raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    return item


def list_items(session: Session, gallery_name: str, after_id: int, limit: int) -> list[Item]:
    """Return up to `limit` live items with internal ids above `after_id`, by internal id."""
    gallery = get_gallery(session, gallery_name)
    query = _live_items(gallery.id).where(Item.id > after_id).order_by(Item.id).limit(limit)
    return list(session.scalars(query))


def _live_items(gallery_id: int) -> Select[Item]:
    query = select(Item).options(defer(Item.thumbnail))
    return query.where(Item.gallery_id == gallery_id, Item.deleted_at.is_(None))


@dataclass(frozen=True)
class Provenance:
    """How an item's embedding came about: `hops` counts the transformations since the pixels or the import, and
    `uncertainty` is the squared error that the last h expects; None where no h made it, or h does not say."""

    origin: str
    hops: int
    uncertainty: float | None


def provenance_of(session: Session, gallery_name: str, item_ids: list[int]) -> dict[int, Provenance]:
    """Return where each item's row in the active generation comes from."""
    gallery = get_gallery(session, gallery_name)
    table = embeddings_table(gallery.active_generation_id or 0)
    columns = f"e.item_id, e.origin, e.hops, {known_uncertainty('e')}"
    query = text(f"SELECT {columns} FROM {table} e WHERE e.item_id = ANY(:ids)")
    return {
        item_id: Provenance(Origin(origin).label, hops, uncertainty)
        for item_id, origin, hops, uncertainty in session.execute(query, {"ids": item_ids})
    }


def get_thumbnail(session: Session, gallery_name: str, external_id: str) -> bytes:
    """Return the item's thumbnail as JPEG, or raise `NoThumbnail` (404)."""
    thumbnail = get_item(session, gallery_name, external_id).thumbnail
    if thumbnail is None:
        raise NoThumbnail(f"Item {external_id!r} has no thumbnail.")
    return thumbnail


def delete_item(writer: GalleryWriter, gallery_name: str, external_id: str) -> None:
    """Delete one item everywhere, or raise `UnknownItem` (404)."""
    check_external_id(external_id)
    with writer.database.session_scope() as session:
        gallery = get_gallery(session, gallery_name)
        revision, count = delete_items(session, gallery.id, [external_id])
        if count == 0:
            raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    writer.replicas.sync(gallery.id, revision)
