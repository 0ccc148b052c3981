"""Who asks, and whether it may: the first thing that is known of a request, before a body is read and before anything
is looked up. The key is in `Authorization: Bearer` or in `api-key`, or a browser's session is in a cookie; never in the
address, which ends in logs.

Which scope an operation needs is in `service.access.operations`.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import identity
from service.access.keys import holds_token
from service.access.known_keys import ANYONE, REMEMBERED_SECONDS, STRANGER, KnownKeys
from service.access.operations import SCOPE_OF, check_scope, operation_of
from service.api.problems import database_away, refused
from service.db import AWAY
from service.errors import Forbidden, GalleryError, Unauthorized
from service.identity import Identity

if TYPE_CHECKING:
    from service.api.dependencies import Parts

COOKIE = "gallery_session"
# What a script of ours sends with a change by its session, and a form cannot.
FORM_GUARD = "X-Requested-With"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


# How a key is shown, as OpenAPI says it; on 127.0.0.1 none may be needed.
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
_EITHER_OR_NONE: list[dict[str, list[str]]] = [{"bearer": []}, {"api-key": []}, {}]


def describe_keys(app: FastAPI) -> None:
    """Have the application's document say how a key is shown, and as `x-scope` which scope each operation needs."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document["components"]["securitySchemes"] = _SCHEMES
        document["security"] = _EITHER_OR_NONE
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                scope = SCOPE_OF.get((method.upper(), path))
                if scope is not None:
                    operation["x-scope"] = scope
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend its document


class NoKey(Unauthorized):
    """The request shows no key."""


class KeyInAddress(Unauthorized):
    """A key stands in the address."""


class FormBySession(Forbidden):
    """A change by a session lacks the header that no form can send."""


class AccessEnded(OSError):
    """The key of an answer that is being streamed is not valid any more: the rest of it is not sent."""


class AccessMiddleware:
    """Sets `identity.current` for a request, and answers 401 and 403; with `needs_key` false, whoever shows no key may
    do everything."""

    def __init__(self, app: ASGIApp, needs_key: bool) -> None:
        self._app = app
        self._needs_key = needs_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        operation = operation_of(scope["method"], scope["path"])
        parts: Parts = scope["app"].state.parts
        keys = parts.keys
        try:
            _refuse_key_in_address(scope)
            is_public = operation is not None and operation.is_public
            shown = None if is_public else _shown(Headers(scope=scope))
            who = STRANGER if is_public else await self._identified(keys, shown)
            check_scope(who, operation)
            if shown is not None and shown.is_cookie and scope["method"] not in _SAFE_METHODS:
                _refuse_forms(scope)
            if operation is not None and parts.quotas.concerns(who, operation):
                await run_in_threadpool(parts.quotas.admit, who, operation)
        except GalleryError as error:
            await _refusal(scope, error)(scope, receive, send)
            return
        except AWAY as error:
            await database_away(Request(scope), error)(scope, receive, send)
            return
        token = identity.current.set(who)
        try:
            await self._app(scope, receive, send if shown is None else _WhileValid(keys, shown, send).send)
        finally:
            identity.current.reset(token)

    async def _identified(self, keys: KnownKeys, shown: "_Shown | None") -> Identity:
        if shown is not None:
            return await shown.identified(keys)
        if self._needs_key:
            raise NoKey("A key is needed: send it as `Authorization: Bearer gu_…`.")
        return ANYONE


@dataclass(frozen=True)
class _Shown:
    """What a request shows of who asks: a token, or the cookie of a browser's session."""

    value: str = field(repr=False)
    is_cookie: bool

    async def identified(self, keys: KnownKeys) -> Identity:
        """Return whose it is, from memory or from rows. Raises `UnknownKey` and `UnknownSession` (401)."""
        remembered = keys.session_remembered(self.value) if self.is_cookie else keys.remembered(self.value)
        if remembered is not None:
            return remembered
        return await run_in_threadpool(keys.session_looked_up if self.is_cookie else keys.look_up, self.value)


class _WhileValid:
    """Passes an answer on for as long as its key is valid: a stream may outlive it."""

    def __init__(self, keys: KnownKeys, shown: _Shown, send: Send) -> None:
        self._keys = keys
        self._shown = shown
        self._send = send
        self._checked = time.monotonic()

    async def send(self, message: Message) -> None:
        if message.get("more_body", False) and time.monotonic() - self._checked > REMEMBERED_SECONDS:
            try:
                await self._shown.identified(self._keys)
            except Unauthorized as error:
                raise AccessEnded(error.message) from error
            self._checked = time.monotonic()
        await self._send(message)


def _refuse_key_in_address(scope: Scope) -> None:
    if holds_token(scope["path"]) or holds_token(unquote(scope["query_string"].decode("latin-1"))):
        raise KeyInAddress(
            "A key stands in the address, which ends in logs: revoke it, and send its successor in a header."
        )


def _shown(headers: Headers) -> _Shown | None:
    """Return what the request shows. Raises `NoKey` (401) for another kind of authorization."""
    authorization = headers.get("authorization")
    if authorization is not None:
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer":
            raise NoKey("Keys are sent as `Authorization: Bearer gu_…`.")
        return _Shown(token.strip(), False)
    api_key = headers.get("api-key")
    if api_key is not None:
        return _Shown(api_key, False)
    cookie = cookie_of(headers)
    return None if cookie is None else _Shown(cookie, True)


def cookie_of(headers: Headers) -> str | None:
    """Return the cookie of a browser's session, if the request has one."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _refuse_forms(scope: Scope) -> None:
    if FORM_GUARD not in Headers(scope=scope):
        raise FormBySession(f"A change by a session needs the header {FORM_GUARD}, which no form can send.")


def _is_page(scope: Scope) -> bool:
    """Whether a browser asks for a page of the console."""
    path: str = scope["path"]
    return scope["method"] == "GET" and (path == "/" or path.startswith("/console/"))


def _refusal(scope: Scope, error: GalleryError) -> Response:
    if isinstance(error, Unauthorized) and _is_page(scope):
        query = scope["query_string"].decode("latin-1")
        page = f"{scope['path']}?{query}" if query else scope["path"]
        return RedirectResponse(f"/console/login?{urlencode({'to': page})}", 303)
    answer = refused(error)
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
