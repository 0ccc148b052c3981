"""`Idempotency-Key`: a POST that is sent again with its key is answered again, not done again.

The answer is kept for a day under (key, path). An advisory lock, held on a connection of its own while the request
runs, tells a request that still runs (409) from one whose process died (the retry runs it again).
"""

import asyncio
import hashlib
import re
import tempfile
from dataclasses import dataclass, field
from typing import IO
from urllib.parse import quote

from sqlalchemy import Connection, delete, func, insert, select, text, update
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.advisory_locks import idempotency_lock
from service.api.problems import AWAY, database_away, problem
from service.db import Database
from service.tables import IdempotencyKey

_KEY_PATTERN = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS = {b"content-type", b"location"}
# Each holds a pooled connection besides the one that its endpoint takes: half the pool would be too many.
_MAX_RUNNING = 16
_IN_MEMORY_BYTES = 16 * 2**20
_READ_BYTES = 2**20
_KEPT_INTERVAL = text("interval '1 day'")


@dataclass
class _Answer:
    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


@dataclass(frozen=True)
class _Running:
    """The right to run a request: the connection holds its lock."""

    connection: Connection
    key: str
    path: str


class IdempotencyMiddleware:
    """Acts on POST requests that carry the header; others pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = asyncio.Semaphore(_MAX_RUNNING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        if key is None or scope["method"] != "POST":
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
                begun = await run_in_threadpool(_begin, database, key, quote(scope["path"]), digest)
            except AWAY as error:
                begun = database_away(Request(scope), error)
            if isinstance(begun, Response):
                await begun(scope, receive, send)
                return
            answer = _Answer()
            try:
                await self._app(scope, _replayed(body, receive), _recording(answer, send))
            finally:
                await run_in_threadpool(_finish, begun, answer)


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


def _recording(answer: _Answer, send: Send) -> Send:
    async def send_and_record(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name, value) for name, value in message["headers"] if name in _KEPT_HEADERS]
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
        await send(message)

    return send_and_record


def _digest(scope: Scope, body: IO[bytes]) -> str:
    """Return the request's SHA-256 without the multipart boundary, which a client draws anew for every attempt."""
    content_type = Headers(scope=scope).get("content-type", "")
    kind, _, boundary_part = content_type.partition("boundary=")
    boundary = boundary_part.strip('"').encode() or None
    digest = hashlib.sha256(scope["query_string"] + b"\0" + kind.encode() + b"\0")
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


def _begin(database: Database, key: str, path: str, digest: str) -> "_Running | Response":
    """Take the key, or return what to answer instead."""
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    connection = engine.connect()
    running = _Running(connection, key, path)
    keep = False
    try:
        if not connection.scalar(select(func.pg_try_advisory_lock(idempotency_lock(key, path)))):
            detail = "A request with this Idempotency-Key is still running."
            return problem(409, detail, headers={"Retry-After": "1"})
        connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - _KEPT_INTERVAL))
        row = connection.execute(
            select(
                IdempotencyKey.request_sha256,
                IdempotencyKey.status,
                IdempotencyKey.headers,
                IdempotencyKey.body,
            ).where(IdempotencyKey.key == key, IdempotencyKey.path == path)
        ).one_or_none()
        if row is None:
            connection.execute(insert(IdempotencyKey).values(key=key, path=path, request_sha256=digest))
        elif row.request_sha256 != digest:
            return problem(422, "This Idempotency-Key was used with another request.")
        elif row.status is not None:
            headers = dict(row.headers or [])
            return Response(row.body or b"", row.status, {**headers, "Idempotent-Replay": "true"})
        keep = True
        return running
    finally:
        if not keep:
            _release(running)


def _finish(running: _Running, answer: _Answer) -> None:
    """Keep the answer; after a failure of ours, free the key, so that a retry tries again."""
    this = (IdempotencyKey.key == running.key) & (IdempotencyKey.path == running.path)
    try:
        if answer.status >= 500:
            running.connection.execute(delete(IdempotencyKey).where(this))
        else:
            headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]
            running.connection.execute(
                update(IdempotencyKey).where(this).values(status=answer.status, headers=headers, body=answer.body)
            )
    finally:
        _release(running)


def _release(running: _Running) -> None:
    try:
        running.connection.execute(select(func.pg_advisory_unlock(idempotency_lock(running.key, running.path))))
    finally:
        running.connection.close()
