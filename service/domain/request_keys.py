"""The keys of requests (`Idempotency-Key`): which of them were answered, and how. No HTTP here.

An answer is kept for a day under (tenant, key, path). An advisory lock, held on a connection of its own while the
request runs, tells a request that still runs from one whose process died, which may be run again. Each statement on
that connection commits by itself: a key is taken before the request's own transaction begins, and its answer is kept
after that ended.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from service import identity
from service.advisory_locks import idempotency_lock
from service.db import Database
from service.errors import Conflict, TooManyRequests, Unprocessable
from service.tables import IdempotencyKey

_KEPT = timedelta(days=1)


class RequestStillRuns(Conflict):
    """Another request with this key has not been answered yet."""

    retry_after_seconds = 1


class KeyOfAnotherRequest(Unprocessable):
    """The key came with a request of another content before."""


@dataclass
class KeptAnswer:
    """What a request was answered, as it is given again; a failure of ours until it is known."""

    status: int = 500
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


@dataclass(frozen=True)
class RunningRequest:
    """The right to run a request: the connection holds its lock."""

    connection: Connection
    tenant: str
    key: str
    path: str

    @property
    def lock(self) -> int:
        """The number of its advisory lock."""
        return idempotency_lock(self.key, f"{self.tenant}{self.path}")

    @property
    def row(self) -> ColumnElement[bool]:
        """Which row is its."""
        row = IdempotencyKey
        return and_(row.tenant == self.tenant, row.key == self.key, row.path == self.path)


def take_key(database: Database, key: str, path: str, request_sha256: str) -> RunningRequest | KeptAnswer:
    """Return the right to run a request, or the answer that it was given before.

    Raises `RequestStillRuns` (409) and `KeyOfAnotherRequest` (422). Whoever runs the request calls `keep_answer` after.
    """
    connection = database.engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    running = RunningRequest(connection, identity.current.get().tenant, key, path)
    try:
        answer = _lock_key(running, request_sha256)
    except BaseException:
        _release(running)
        raise

    if answer is None:
        return running
    _release(running)
    return answer


def keep_answer(running: RunningRequest, answer: KeptAnswer) -> None:
    """Keep the answer; after a failure of ours, or one that asks to come back (429), free the key, so that a retry
    tries again."""
    try:
        if answer.status >= 500 or answer.status == TooManyRequests.status_code:
            running.connection.execute(delete(IdempotencyKey).where(running.row))
        else:
            values = {"status": answer.status, "headers": answer.headers, "body": answer.body}
            running.connection.execute(update(IdempotencyKey).where(running.row).values(values))
    finally:
        _release(running)


def _lock_key(running: RunningRequest, request_sha256: str) -> KeptAnswer | None:
    """Lock the key and note that the request runs, or return the answer that is kept."""
    connection = running.connection
    if not connection.scalar(select(func.pg_try_advisory_lock(running.lock))):
        raise RequestStillRuns("A request with this Idempotency-Key is still running.")

    connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - _KEPT))
    row = connection.execute(
        select(IdempotencyKey.request_sha256, IdempotencyKey.status, IdempotencyKey.headers, IdempotencyKey.body).where(
            running.row
        )
    ).one_or_none()

    if row is None:
        connection.execute(
            insert(IdempotencyKey).values(
                tenant=running.tenant, key=running.key, path=running.path, request_sha256=request_sha256
            )
        )
        return None
    if row.request_sha256 != request_sha256:
        raise KeyOfAnotherRequest("This Idempotency-Key was used with another request.")
    if row.status is None:  # its process died
        return None
    return KeptAnswer(row.status, [(name, value) for name, value in row.headers or []], row.body or b"")


def _release(running: RunningRequest) -> None:
    try:
        running.connection.execute(select(func.pg_advisory_unlock(running.lock)))
    finally:
        running.connection.close()
