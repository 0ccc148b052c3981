"""`/v1/galleries/{g}/items`. An id may hold any printable character, slashes included."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel

from service.api.dependencies import NamePath, PartsDependency, Session, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.domain.gallery import items
from service.tables import Item

router = APIRouter(prefix="/galleries", tags=["items"])
ItemId = Annotated[str, Path(min_length=1)]


class ItemView(BaseModel):
    """`origin`, `hops` and `uncertainty` are those of its row in the active generation: where the embedding comes from,
    how many transformations ago it came from pixels (or was imported), and the squared error (l2) that h expects of it,
    null where no h made it or h does not say."""

    id: str
    label: str | None
    metadata: dict[str, Any]
    origin: str | None
    hops: int | None
    uncertainty: float | None
    revision: int
    created_at: datetime


def thumbnail_url(gallery: str, external_id: str) -> str:
    """Return where an item's thumbnail is, if it has one."""
    return f"/v1/galleries/{gallery}/items/{quote(external_id, safe='')}/thumbnail"


def _views(session: Session, gallery: str, found: list[Item]) -> list[ItemView]:
    rows = items.provenance_of(session, gallery, [item.id for item in found])
    return [_view(item, rows.get(item.id)) for item in found]


def _view(item: Item, row: items.Provenance | None) -> ItemView:
    return ItemView(
        id=item.external_id,
        label=item.label,
        metadata=item.metadata_,
        origin=row.origin if row else None,
        hops=row.hops if row else None,
        uncertainty=row.uncertainty if row else None,
        revision=item.revision,
        created_at=item.created_at,
    )


@router.get("/{name}/items")
def list_items(name: NamePath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[ItemView]:
    """Return live items in the order they were first created."""
    found = items.list_items(session, name, decode_cursor(cursor), limit + 1)
    return page_of(_views(session, name, found), [item.id for item in found], limit)


@router.get(
    "/{name}/items/{item_id:path}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
def get_thumbnail(name: NamePath, item_id: ItemId, session: SessionDependency) -> Response:
    """Return an item's thumbnail as JPEG."""
    return Response(items.get_thumbnail(session, name, item_id), media_type="image/jpeg")


@router.get("/{name}/items/{item_id:path}")
def get_item(name: NamePath, item_id: ItemId, session: SessionDependency) -> ItemView:
    """Return one live item."""
    return _views(session, name, [items.get_item(session, name, item_id)])[0]


@router.delete("/{name}/items/{item_id:path}", status_code=204)
def delete_item(name: NamePath, item_id: ItemId, parts: PartsDependency) -> None:
    """Delete an item from every generation."""
    items.delete_item(parts.writer, name, item_id)
