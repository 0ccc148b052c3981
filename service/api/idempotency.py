"""`Idempotency-Key`: a POST that is sent again with its key is answered again, not done again.

HTTP only: the header, the request's digest, and the answer as it is recorded and given again. Which keys are taken and
what was answered is in `service.domain.request_keys`. An answer is recorded before its end is sent, so that whoever has
read it whole can send the request again at once. Searches change nothing and are never replayed: an answer of before
may show what was deleted since. Nor are answers that show a secret, since no row holds one: such a request is not done
again either, and a repeated one is told so (409).
"""

import asyncio
import hashlib
import re
import tempfile
from typing import IO
from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import identity, logs
from service.api.problems import database_away, problem, refused
from service.db import AWAY, Database
from service.domain.request_keys import (
    KeptAnswer,
    KeyOfAnotherRequest,
    RequestStillRuns,
    RunningRequest,
    keep_answer,
    take_key,
)

events = logs.Events(__name__)

_KEY_PATTERN = re.compile(r"[\x21-\x7e]{1,255}")
_NEVER_KEPT = re.compile(r"/search(/vectors)?/?$|^/v1/session/?$")
_SHOWS_A_SECRET = re.compile(r"/v1/keys(/[^/]+/rotate)?/?")
_DONE = (
    "The request was carried out before, and the secret that it was answered with is kept nowhere. GET /v1/keys lists"
    " the key: revoke it, and make another."
)
_KEPT_HEADERS = {b"content-type", b"location"}
# Each holds a pooled connection besides the one that its endpoint takes: half the pool would be too many.
_MAX_RUNNING = 16
_IN_MEMORY_BYTES = 16 * 2**20
_READ_BYTES = 2**20


class IdempotencyMiddleware:
    """Acts on POST requests that carry the header; others pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = asyncio.Semaphore(_MAX_RUNNING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        if key is None or scope["method"] != "POST" or _NEVER_KEPT.search(scope["path"]):
            await self._app(scope, receive, send)
        elif not _KEY_PATTERN.fullmatch(key):
            refusal = problem(422, "Idempotency-Key has 1 to 255 printable ASCII characters without spaces.")
            await refusal(scope, receive, send)
        else:
            with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as body:
                await self._run_once(key, body, scope, receive, send)

    async def _run_once(self, key: str, body: IO[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            await run_in_threadpool(body.write, message.get("body", b""))
            more = message.get("more_body", False)

        database: Database = scope["app"].state.parts.database
        digest = await run_in_threadpool(_digest, scope, body)
        async with self._turns:
            # Quoted, because a path may hold what a row cannot: NUL.
            try:
                taken = await run_in_threadpool(take_key, database, key, quote(scope["path"]), digest)
            except (RequestStillRuns, KeyOfAnotherRequest) as refusal:
                await refused(refusal)(scope, receive, send)
                return
            except AWAY as error:
                await database_away(Request(scope), error)(scope, receive, send)
                return
            if isinstance(taken, KeptAnswer):
                await _again(taken)(scope, receive, send)
                return

            recorder = _Recorder(taken, send)
            try:
                await self._app(scope, _replayed(body, receive), recorder.send)
            finally:
                await recorder.record()


def _again(answer: KeptAnswer) -> Response:
    return Response(answer.body, answer.status, {**dict(answer.headers), "Idempotent-Replay": "true"})


def _replayed(body: IO[bytes], receive: Receive) -> Receive:
    body.seek(0)
    ended = False

    async def receive_again() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        block = await run_in_threadpool(body.read, _READ_BYTES)
        ended = len(block) < _READ_BYTES
        return {"type": "http.request", "body": block, "more_body": not ended}

    return receive_again


class _Recorder:
    """Passes an answer on and keeps it; its last message waits until that is done."""

    def __init__(self, request: RunningRequest, send: Send) -> None:
        self._request: RunningRequest | None = request
        self._answer = KeptAnswer()
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._answer.status = message["status"]
            kept = [(name, value) for name, value in message["headers"] if name in _KEPT_HEADERS]
            self._answer.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept]
        elif message["type"] == "http.response.body":
            self._answer.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self.record()
        await self._send(message)

    async def record(self) -> None:
        """Keep the answer, once; a request that ended without one is a failure of ours. Where it cannot be kept the
        answer is still sent: the work is done."""
        request, self._request = self._request, None
        if request is None:
            return
        answer = self._answer
        if _SHOWS_A_SECRET.fullmatch(unquote(request.path)) and answer.status < 400:
            done = problem(409, _DONE)
            answer = KeptAnswer(409, [("content-type", done.headers["content-type"])], bytes(done.body))
        try:
            await run_in_threadpool(keep_answer, request, answer)
        except AWAY as error:
            events.warning("idempotency.not_kept", path=request.path, error=str(error))


def _digest(scope: Scope, body: IO[bytes]) -> str:
    """Return the request's SHA-256 without the multipart boundary, which a client draws anew for every attempt."""
    content_type = Headers(scope=scope).get("content-type", "")
    kind, _, boundary_part = content_type.partition("boundary=")
    boundary = boundary_part.strip('"').encode() or None

    digest = hashlib.sha256(scope["query_string"] + b"\0" + kind.encode() + b"\0")
    galleries = identity.current.get().galleries
    if galleries != identity.EVERY_GALLERY:
        # A key for other galleries is not given the answer: it may be about one that it must not touch.
        digest.update(" ".join(galleries).encode() + b"\0")
    body.seek(0)
    carried = b""
    while block := body.read(_READ_BYTES):
        data = carried + block
        if boundary is None:
            digest.update(data)
            continue
        data = data.replace(boundary, b"")
        keep = len(boundary) - 1  # the start of a boundary that goes on in the next block
        carried = data[-keep:] if keep else b""
        digest.update(data[: len(data) - len(carried)])

    digest.update(carried)
    return digest.hexdigest()
