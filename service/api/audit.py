"""`/v1/audit`: who did what to what."""

import io
import json
from datetime import datetime
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import AwareDatetime, BaseModel, BeforeValidator

from service import audit, identity
from service.api.dependencies import SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.representations import prefers
from service.audit import Act, Wanted
from service.tables import AuditEntry

router = APIRouter(prefix="/audit", tags=["audit"])

_ARROW = "application/vnd.apache.arrow.stream"
_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("key_id", "name", "tenant", "action", "subject_kind", "subject")),
        *((name, pa.string()) for name in ("request_id", "before", "after", "reason", "hash")),
    ]
)
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {_ARROW: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"Next-Cursor": {"schema": {"type": "string"}, "description": "Of a table: where the next begins."}},
    }
}


def _not_a_number(value: object) -> object:
    """Refuse seconds since 1970, which pydantic takes for a time and the description does not."""
    if isinstance(value, str) and not value[4:5] == "-":
        raise ValueError("a time is written as 2026-11-30T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_not_a_number)]


class EntryView(BaseModel):
    """`hash` is the SHA-256 over the entry before and the canonical JSON of this one without it."""

    id: int
    at: datetime
    key_id: str | None
    name: str
    tenant: str
    action: str
    subject_kind: str
    subject: str
    request_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    hash: str


async def _wanted(
    action: Act | None = None,
    subject_kind: Annotated[str | None, Query(max_length=64, description="as gallery or upgrade")] = None,
    subject: Annotated[str | None, Query(max_length=512, description="its name, or its id")] = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Wanted:
    """Not `def`, which would wait for a thread."""
    return Wanted(identity.current.get().tenant, action, subject_kind, subject, since, until)


@router.get("", response_model=Page[EntryView], responses=_RESPONSES)
def list_entries(
    session: SessionDependency,
    wanted: Annotated[Wanted, Depends(_wanted)],
    limit: Limit = 100,
    cursor: Cursor = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Page[EntryView] | Response:
    """Return entries of the tenant, oldest first, of one action, subject, or time (from `since` to before `until`): as
    JSON, or by `Accept: application/vnd.apache.arrow.stream` as a table, whose `before` and `after` are JSON and whose
    cursor is in `Next-Cursor`."""
    found = audit.list_entries(session, wanted, decode_cursor(cursor), limit + 1)
    page = page_of([_view(entry) for entry in found], [entry.id for entry in found], limit)
    return _table(page) if prefers(accept, _ARROW) else page


def _view(entry: AuditEntry) -> EntryView:
    return EntryView(**audit.content_of(entry), hash=entry.hash)


def _table(page: Page[EntryView]) -> Response:
    rows = [entry.model_dump() for entry in page.items]
    for row in rows:
        row |= {name: None if row[name] is None else json.dumps(row[name]) for name in ("before", "after")}
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    headers = {} if page.next_cursor is None else {"Next-Cursor": page.next_cursor}
    return Response(sink.getvalue(), media_type=_ARROW, headers=headers)
