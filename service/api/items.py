"""`/v1/galleries/{g}/items`. An id may hold any printable character, slashes included."""

from datetime import datetime
from typing import Annotated, Any, cast
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from service.api.dependencies import NamePath, PartsDependency, Session, SessionDependency
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.prefixes import address
from service.api.refusals import refusals
from service.domain.gallery import items
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.items import NoThumbnail, UnknownItem
from service.domain.gallery.new_items import InvalidItem
from service.domain.gallery.writes import Description
from service.domain.search import selections
from service.domain.search.filters import InvalidFilter
from service.domain.search.selections import InvalidSelection
from service.tables import Item

router = APIRouter(prefix="/galleries", tags=["items"], route_class=JsonRoute)
ItemId = Annotated[str, Path(min_length=1)]
_MAX_IDS = 1_000


class ItemView(BaseModel):
    """`image_uri` is where its user says that the image is kept.

    `origin`, `hops` and `uncertainty` are those of its row in the active generation: where the embedding comes from,
    how many transformations ago it came from pixels (or was imported), and the squared error (l2) that h expects of it,
    null where no h made it or h does not say."""

    id: str
    label: str | None
    metadata: dict[str, Any]
    image_uri: str | None
    origin: str | None
    hops: int | None
    uncertainty: float | None
    revision: int
    created_at: datetime


class ItemChanges(Body):
    """What is said of an item anew: a key that is left out changes nothing, a null label or image_uri removes it, and
    metadata replaces all of it."""

    label: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    image_uri: str | None = None

    def given(self) -> Description:
        """Return the keys that were given."""
        return cast("Description", {name: getattr(self, name) for name in self.model_fields_set})


class ItemsToDelete(Body):
    """Items by their `ids`, or those that a `filter` of searches selects, one of the two."""

    ids: Annotated[list[str], Field(min_length=1, max_length=selections.MAX_IDS)] | None = None
    filter: dict[str, Any] | None = None


class DeletedView(BaseModel):
    """How many items were deleted, and the gallery's revision since."""

    deleted: int
    revision: int


def thumbnail_url(gallery: str, external_id: str) -> str:
    """Return where an item's thumbnail is, if it has one."""
    return address(f"/v1/galleries/{gallery}/items/{quote(external_id, safe='')}/thumbnail")


def _views(session: Session, gallery: str, found: list[Item]) -> list[ItemView]:
    rows = items.provenance_of(session, gallery, [item.id for item in found])
    return [_view(item, rows.get(item.id)) for item in found]


def _view(item: Item, row: items.Provenance | None) -> ItemView:
    return ItemView(
        id=item.external_id,
        label=item.label,
        metadata=item.metadata_,
        image_uri=item.image_uri,
        origin=row.origin if row else None,
        hops=row.hops if row else None,
        uncertainty=row.uncertainty if row else None,
        revision=item.revision,
        created_at=item.created_at,
    )


@router.get("/{name}/items", responses=refusals(UnknownGallery, InvalidItem))
def list_items(
    name: NamePath,
    session: SessionDependency,
    limit: Limit = 100,
    cursor: Cursor = None,
    ids: Annotated[list[str] | None, Query(min_length=1, max_length=_MAX_IDS)] = None,
) -> Page[ItemView]:
    """Return live items in the order they were first created; with `ids`, repeated, all of those that are there, in the
    order of the ids."""
    if ids is not None:
        return Page(items=_views(session, name, items.find_items(session, name, ids)), next_cursor=None)
    found = items.list_items(session, name, decode_cursor(cursor), limit + 1)
    return page_of(_views(session, name, found), [item.id for item in found], limit)


@router.get(
    "/{name}/items/{item_id:path}/thumbnail",
    response_class=Response,
    responses=refusals(UnknownGallery, InvalidItem, UnknownItem, NoThumbnail) | {200: {"content": {"image/jpeg": {}}}},
)
def get_thumbnail(name: NamePath, item_id: ItemId, session: SessionDependency) -> Response:
    """Return an item's thumbnail as JPEG."""
    return Response(items.get_thumbnail(session, name, item_id), media_type="image/jpeg")


@router.get("/{name}/items/{item_id:path}", responses=refusals(UnknownGallery, InvalidItem, UnknownItem))
def get_item(name: NamePath, item_id: ItemId, session: SessionDependency) -> ItemView:
    """Return one live item."""
    return _views(session, name, [items.get_item(session, name, item_id)])[0]


@router.post("/{name}/items/delete", responses=refusals(UnknownGallery, InvalidItem, InvalidSelection, InvalidFilter))
def delete_items(name: NamePath, wanted: ItemsToDelete, parts: PartsDependency) -> DeletedView:
    """Delete items from every generation, in transactions of 5,000: after a failure the same request deletes the rest.

    An id that no item has is not counted.
    """
    deleted = selections.delete_selected(parts.writer, name, wanted.ids, wanted.filter)
    return DeletedView(deleted=deleted.count, revision=deleted.revision)


@router.patch("/{name}/items/{item_id:path}", responses=refusals(UnknownGallery, UnknownItem, InvalidItem))
def change_item(name: NamePath, item_id: ItemId, changes: ItemChanges, parts: PartsDependency) -> ItemView:
    """Change an item's label, metadata or image_uri without its image; its embeddings stay."""
    items.describe_item(parts.writer, name, item_id, changes.given())
    with parts.database.session_scope() as session:
        return _views(session, name, [items.get_item(session, name, item_id)])[0]


@router.delete(
    "/{name}/items/{item_id:path}", status_code=204, responses=refusals(UnknownGallery, InvalidItem, UnknownItem)
)
def delete_item(name: NamePath, item_id: ItemId, parts: PartsDependency) -> None:
    """Delete an item from every generation."""
    items.delete_item(parts.writer, name, item_id)
