"""Items: looking at them, one by one or in pages, describing them anew, and deleting them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session, defer

from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import known_uncertainty
from service.domain.gallery.new_items import canonical_id, check_description, check_external_id, check_image_uri
from service.domain.gallery.writes import Description, GalleryWriter, delete_items, redescribe_item
from service.errors import NotFound
from service.tables import Item, embeddings_table
from service.vectors.rows import Origin


class UnknownItem(NotFound):
    """The gallery has no live item with this id."""


class NoThumbnail(NotFound):
    """The item has no thumbnail: it was imported, or the gallery keeps none."""


def get_item(session: Session, gallery_name: str, external_id: str) -> Item:
    """Return a live item, or raise `UnknownItem` (404). One that is stored under the id as it was given goes before
    that of the canonical id: rows from before ids had one form may share it."""
    check_external_id(external_id)
    gallery = get_gallery(session, gallery_name)
    names = {external_id, canonical_id(external_id)}
    query = _live_items(gallery.id).where(Item.external_id.in_(names))
    item = session.scalar(query.order_by((Item.external_id == external_id).desc()).limit(1))
    if item is None:
        raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    return item


def list_items(session: Session, gallery_name: str, after_id: int, limit: int) -> list[Item]:
    """Return up to `limit` live items with internal ids above `after_id`, by internal id."""
    gallery = get_gallery(session, gallery_name)
    query = _live_items(gallery.id).where(Item.id > after_id).order_by(Item.id).limit(limit)
    return list(session.scalars(query))


def find_items(session: Session, gallery_name: str, external_ids: Sequence[str]) -> list[Item]:
    """Return those of the items that are live, in the order of the ids, each once."""
    gallery = get_gallery(session, gallery_name)
    names = list(dict.fromkeys(map(canonical_id, external_ids)))
    for name in names:
        check_external_id(name)
    found = {
        item.external_id: item for item in session.scalars(_live_items(gallery.id).where(Item.external_id.in_(names)))
    }
    return [found[name] for name in names if name in found]


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


def having_thumbnails(session: Session, item_ids: Sequence[int]) -> set[int]:
    """Return which of the items have a thumbnail, without reading any."""
    return set(session.scalars(select(Item.id).where(Item.id.in_(item_ids), Item.thumbnail.is_not(None))))


def get_thumbnail(session: Session, gallery_name: str, external_id: str) -> bytes:
    """Return the item's thumbnail as JPEG, or raise `NoThumbnail` (404)."""
    thumbnail = get_item(session, gallery_name, external_id).thumbnail
    if thumbnail is None:
        raise NoThumbnail(f"Item {external_id!r} has no thumbnail.")
    return thumbnail


def delete_item(writer: GalleryWriter, gallery_name: str, external_id: str) -> None:
    """Delete one item everywhere, or raise `UnknownItem` (404)."""
    with writer.database.session_scope() as session:
        item = get_item(session, gallery_name, external_id)
        revision, count = delete_items(session, item.gallery_id, [item.external_id])
        if count == 0:
            raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    writer.replicas.sync(item.gallery_id, revision)


def describe_item(writer: GalleryWriter, gallery_name: str, external_id: str, changes: Description) -> None:
    """Change what is said of an item; its embeddings, and what is evidence of it, stay as they are.

    Raises `UnknownItem` (404) and `InvalidItem` (422).
    """
    check_description(external_id, changes.get("label"), changes.get("metadata"), writer.settings.max_metadata_bytes)
    image_uri = changes.get("image_uri")
    if image_uri is not None:
        check_image_uri(external_id, image_uri)
    with writer.database.session_scope() as session:
        item = get_item(session, gallery_name, external_id)
        revision = redescribe_item(session, item.gallery_id, item.id, changes)
        if revision is None:
            raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    writer.replicas.sync(item.gallery_id, revision)
