"""Many items: looking at those that a filter selects, and deleting them or those of a list of ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, defer

from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.new_items import canonical_id, check_external_id
from service.domain.gallery.writes import GalleryWriter, delete_items
from service.domain.search.filters import compile_filter
from service.errors import Unprocessable
from service.tables import Item

MAX_IDS = 100_000
_AT_ONCE = 5_000  # of one transaction, for which other writers wait


class InvalidSelection(Unprocessable):
    """What is to be deleted is not said, or said twice."""


@dataclass(frozen=True)
class Deleted:
    """How many items were deleted, and the gallery's revision since."""

    count: int
    revision: int


def list_selected(
    session: Session, gallery_name: str, condition: dict[str, Any], after_id: int, limit: int
) -> list[Item]:
    """Return up to `limit` live items that pass the filter, with internal ids above `after_id`, by internal id.

    Raises `UnknownGallery` (404) and `InvalidFilter` (422).
    """
    gallery = get_gallery(session, gallery_name)
    passes = compile_filter(condition, gallery.active_generation_id or 0)
    query = select(Item).options(defer(Item.thumbnail))
    live = query.where(Item.gallery_id == gallery.id, Item.deleted_at.is_(None), Item.id > after_id, passes)
    return list(session.scalars(live.order_by(Item.id).limit(limit)))


def delete_selected(
    writer: GalleryWriter, gallery_name: str, external_ids: Sequence[str] | None, condition: dict[str, Any] | None
) -> Deleted:
    """Delete the items with the ids, or those that pass the filter and are no newer than the gallery is now.

    Each transaction deletes some thousands, so a crash leaves the others; asked again, they are deleted. Raises
    `UnknownGallery` (404), and `InvalidSelection`, `InvalidItem` and `InvalidFilter` (422).
    """
    if (external_ids is None) == (condition is None):
        raise InvalidSelection("Say what to delete by 'ids' or by 'filter', one of the two.")
    if condition == {}:
        raise InvalidSelection("An empty filter selects every item; delete the gallery, or name a condition.")

    names = list(dict.fromkeys(map(canonical_id, external_ids or ())))
    for name in names:
        check_external_id(name)
    parts = [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
    with writer.database.session_scope() as session:
        gallery = get_gallery(session, gallery_name)
    count, revision = 0, gallery.revision
    while True:
        with writer.database.session_scope() as session:
            if condition is None:
                part = parts.pop(0) if parts else []
                which: ColumnElement[bool] = Item.external_id.in_(part)
            else:
                active_id = get_gallery(session, gallery_name).active_generation_id or 0
                which = compile_filter(condition, active_id) & (Item.revision <= gallery.revision)
            found = _live(session, gallery.id, which)
            if found:
                revision, deleted = delete_items(session, gallery.id, found)
                count += deleted
        if not (parts if condition is None else found):
            break
    writer.replicas.sync(gallery.id, revision)
    return Deleted(count, revision)


def _live(session: Session, gallery_id: int, which: ColumnElement[bool]) -> list[str]:
    """Return the ids of the first live items that the condition selects."""
    query = select(Item.external_id).where(Item.gallery_id == gallery_id, Item.deleted_at.is_(None), which)
    return list(session.scalars(query.order_by(Item.id).limit(_AT_ONCE)))
