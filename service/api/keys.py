"""`/v1/keys` and `/v1/session`."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field, SecretStr, StringConstraints

from service import identity
from service.access import keys, sessions
from service.access.keys import DEFAULT_DAYS, InvalidKeyRequest, KeyEnded, NewKey, NotYourTenant, UnknownKeyId
from service.access.operations import Scope
from service.api.access import COOKIE, cookie_of
from service.api.dependencies import PartsDependency, SessionDependency
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.prefixes import address
from service.api.refusals import refusals
from service.tables import ApiKey

router = APIRouter(tags=["keys"], route_class=JsonRoute)

KeyId = Annotated[str, Path(pattern=r"^[A-Za-z0-9]{8}$")]
Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._*?-]{1,128}$")]


class WantedKey(Body):
    """`scopes` say what the key may do; `admin` is all of them. `galleries` are patterns of the names of those that it
    may touch, in which `*` and `?` stand for any characters. It is valid for `days`. `tenant` is its maker's unless an
    admin of the default tenant says otherwise."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    galleries: Annotated[list[Pattern], Field(min_length=1, max_length=100)] = Field(default=["*"])
    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    days: Annotated[int, Field(ge=1, le=3_650)] = DEFAULT_DAYS


class KeyView(BaseModel):
    """A key without its secret. `created_by` is the id of its maker's key, null for the command line and for whoever
    needed none."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    galleries: list[str]
    created_by: str | None
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    rotated_at: datetime | None
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """`key` is shown this once."""

    key: str


class ShownKey(Body):
    """The key that a browser shows."""

    key: SecretStr


class IdentityView(BaseModel):
    """Whoever asks: the id and name of the key (null and "-" where none is needed), its tenant, and what it may do."""

    key_id: str | None
    name: str
    tenant: str
    scopes: list[str]
    galleries: list[str]


def _view(row: ApiKey) -> KeyView:
    return KeyView(**_fields(row))


def _new_view(new: NewKey) -> NewKeyView:
    return NewKeyView(**_fields(new.row), key=new.token)


def _fields(row: ApiKey) -> dict[str, object]:
    return {"id": row.key_id, **{name: getattr(row, name) for name in KeyView.model_fields if name != "id"}}


def _identity_view(who: identity.Identity) -> IdentityView:
    return IdentityView(
        key_id=who.key_id,
        name=who.name,
        tenant=who.tenant,
        scopes=sorted(who.scopes),
        galleries=list(who.galleries),
    )


@router.post("/keys", status_code=201, responses=refusals(InvalidKeyRequest, NotYourTenant))
def create_key(wanted: WantedKey, session: SessionDependency, response: Response) -> NewKeyView:
    """Make a key; the answer alone has its secret."""
    new = keys.create_key(
        session, keys.WantedKey(wanted.name, wanted.scopes, wanted.galleries, wanted.tenant, wanted.days)
    )
    response.headers["Cache-Control"] = "no-store"
    return _new_view(new)


@router.get("/keys")
def list_keys(session: SessionDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[KeyView]:
    """Return keys, oldest first; those that ended too."""
    found = keys.list_keys(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(row) for row in found], [row.id for row in found], limit)


@router.delete("/keys/{key_id}", responses=refusals(UnknownKeyId))
def revoke_key(key_id: KeyId, session: SessionDependency) -> KeyView:
    """End a key, in every process within 5 seconds."""
    return _view(keys.revoke_key(session, key_id))


@router.post("/keys/{key_id}/rotate", status_code=201, responses=refusals(UnknownKeyId, KeyEnded))
def rotate_key(key_id: KeyId, session: SessionDependency, response: Response) -> NewKeyView:
    """Make a key that may do the same; the old one is valid for an hour more."""
    new = keys.rotate_key(session, key_id)
    response.headers["Cache-Control"] = "no-store"
    return _new_view(new)


@router.post("/session", status_code=201)
def begin_session(shown: ShownKey, request: Request, parts: PartsDependency, response: Response) -> IdentityView:
    """Let a browser act by a key for twelve hours, by a cookie that no script and no other site can use. What it
    changes by it needs the header `X-Requested-With`."""
    who = parts.keys.look_up(shown.key.get_secret_value())
    assert who.key_id is not None
    with parts.database.session_scope() as session:
        cookie = sessions.begin_session(session, who.key_id)
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(sessions.LASTS.total_seconds()),
        path=address("/"),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    response.headers["Cache-Control"] = "no-store"
    return _identity_view(who)


@router.get("/session")
def show_session() -> IdentityView:
    """Return whose key the request comes with."""
    return _identity_view(identity.current.get())


@router.delete("/session", status_code=204)
def end_session(request: Request, session: SessionDependency, response: Response) -> None:
    """End the browser's session."""
    cookie = cookie_of(request.headers)
    if cookie is not None:
        sessions.end_session(session, cookie)
    response.delete_cookie(COOKIE, path=address("/"), httponly=True, samesite="strict")
