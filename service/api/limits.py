"""Middlewares around every request: its id for the logs, a limit on its body, and room on the disk for it."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.access.keys import holds_token
from service.api.json_bodies import is_json
from service.api.problems import problem, refused
from service.disk import NoRoom, shortage
from service.settings import Settings

# The routes whose bodies are forms, tables or images, which are read in parts.
OF_FILES = re.compile(
    r"/v1/(model-versions(/[^/]+/networks)?|transformations(/train)?"
    r"|galleries/[^/]+/(images|embeddings|search|query-sets)"
    r"|(external-)?upgrades/[^/]+/references(/vectors)?|backfills/[^/]+/images)/?"
)
# What these are sent is stored; other calls ask, delete, or decide.
_STORES = re.compile(
    r"/v1/(model-versions|transformations(/train)?|galleries(/[^/]+/(images(/references)?|embeddings|query-sets|upgrades"
    r"|backfills))?|external-upgrades|(external-)?upgrades/[^/]+/references(/vectors)?|backfills/[^/]+/images)/?"
)
_PUTS = re.compile(r"/v1/model-versions/[^/]+/networks/?")
_CHANGES = re.compile(r"/v1/galleries/[^/]+/items/.+", re.DOTALL)
_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIdMiddleware:
    """Takes the client's X-Request-ID, if it is a sane one, or makes one; answers carry it.

    The id stays set after the request: the handler of unexpected errors logs outside of this middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        is_sane = _ID_PATTERN.fullmatch(given) and not holds_token(given)  # it is kept in the audit
        identifier = given if is_sane else uuid.uuid4().hex
        logs.request_id.set(identifier)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = identifier
            await send(message)

        await self._app(scope, receive, send_with_id)


class RoomMiddleware:
    """Answers 507 to what would be stored while the disk has less than its reserve, before a body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _stores(scope["method"], scope["path"]):
            lack = shortage(self._settings)
            if lack is not None:
                await refused(NoRoom(lack))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimitMiddleware:
    """Answers 413 when a body says that it is larger than allowed, or grows to be.

    The limit is `max_bytes` for files, and `max_json_bytes` for JSON, wherever it is sent, and on all routes that take
    no files: JSON is held in memory before anything is known of it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_json_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_json_bytes = min(max_bytes, max_json_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_file = OF_FILES.fullmatch(scope["path"]) and not is_json(headers)
        most = self._max_bytes if is_file else self._max_json_bytes
        detail = f"A request's body has at most {most} bytes."
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            await problem(413, detail)(scope, receive, send)
            return
        received, started = 0, False

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, detail)
            return message

        async def send_within_limit(message: Message) -> None:
            nonlocal started
            if started or received <= most:
                started = True
                await send(message)

        # What the application makes of the exception differs (a form reader says 400, a middleware passes it on), so
        # the answer is given here.
        try:
            await self._app(scope, receive_limited, send_within_limit)
        except HTTPException:
            if received <= most:
                raise
        if received > most and not started:
            await problem(413, detail)(scope, receive, send)


def _stores(method: str, path: str) -> bool:
    """Whether a request brings something to keep."""
    stores = {"POST": _STORES, "PUT": _PUTS, "PATCH": _CHANGES}.get(method)
    return stores is not None and stores.fullmatch(path) is not None
