"""Pages: `limit` and an opaque `cursor` that holds the last id of the page before."""

import base64
import binascii
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

from service.errors import Unprocessable

Row = TypeVar("Row")
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(max_length=64)]


class InvalidCursor(Unprocessable):
    """The cursor did not come from this service."""


class Page(BaseModel, Generic[Row]):
    """One page; `next_cursor` is null on the last one."""

    items: list[Row]
    next_cursor: str | None


def encode_cursor(last_id: int) -> str:
    return base64.urlsafe_b64encode(str(last_id).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> int:
    """Return the id after which the page starts; 0 for the first page."""
    if not cursor:
        return 0
    try:
        after = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii"))
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor("The cursor is not one that this service gave.") from error
    if not 0 <= after < 2**63:
        raise InvalidCursor("The cursor is not one that this service gave.")
    return after


def page_of(rows: list[Row], ids: list[int], limit: int) -> Page[Row]:
    """Return a page from up to `limit + 1` rows, ids ascending; the extra row tells that there is a next page."""
    more = len(rows) > limit
    return Page(items=rows[:limit], next_cursor=encode_cursor(ids[limit - 1]) if more else None)
