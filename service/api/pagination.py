"""Pages: `limit` and an opaque `cursor` that holds the last id of the page before."""

from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

Row = TypeVar("Row")
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=r"^[0-7][0-9a-f]{15}$", description="of the page before: next_cursor")]


class Page(BaseModel, Generic[Row]):
    """One page; `next_cursor` is null on the last one."""

    items: list[Row]
    next_cursor: str | None


def encode_cursor(last_id: int) -> str:
    return f"{last_id:016x}"


def decode_cursor(cursor: str | None) -> int:
    """Return the id after which the page starts; 0 for the first page."""
    return 0 if cursor is None else int(cursor, 16)


def page_of(rows: list[Row], ids: list[int], limit: int) -> Page[Row]:
    """Return a page from up to `limit + 1` rows, ids ascending; the extra row tells that there is a next page."""
    more = len(rows) > limit
    return Page(items=rows[:limit], next_cursor=encode_cursor(ids[limit - 1]) if more else None)
