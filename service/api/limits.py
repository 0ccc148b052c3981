"""Middlewares around every request: its id for the logs, and a limit on its body."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.problems import problem

# The routes whose bodies are forms, tables or images, which are read in parts.
OF_FILES = re.compile(
    r"/v1/(model-versions|transformations(/train)?|galleries/[^/]+/(images|embeddings|search|query-sets)"
    r"|upgrades/[^/]+/references)/?"
)
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
        identifier = given if _ID_PATTERN.fullmatch(given) else uuid.uuid4().hex
        logs.request_id.set(identifier)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = identifier
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimitMiddleware:
    """Answers 413 when a body says that it is larger than allowed, or grows to be.

    The limit is `max_bytes` for the routes of files, and `max_json_bytes` for others: JSON is held in memory before
    anything is known of it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_json_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_json_bytes = min(max_bytes, max_json_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._max_bytes if OF_FILES.fullmatch(scope["path"]) else self._max_json_bytes
        detail = f"A request's body has at most {most} bytes."
        declared = Headers(scope=scope).get("content-length", "0")
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
