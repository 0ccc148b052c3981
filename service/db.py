"""The database: one engine per process and `session_scope()`, the one place that commits what rules write.

The exception is `service.domain.request_keys`, whose statements commit by themselves.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session as Session  # endpoints name the type, and import nothing of SQLAlchemy's
from sqlalchemy.pool import ConnectionPoolEntry

from service.advisory_locks import AdvisoryLock, key_of
from service.queue import Sender

# What the database raises when it is away, does not answer, or when all connections to it are taken.
AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
_LOCK_POLL_SECONDS = 0.02
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def create_database_engine(url: str, pool_size: int = 20, trusted_seconds: float = 1.0) -> Engine:
    """Return an engine on psycopg 3; a connection that died while idle is replaced, not raised.

    Unlike with `pool_pre_ping`, one that was in use less than `trusted_seconds` ago is not asked whether it lives: that
    takes a tenth of a query's time.
    """
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]

    engine = create_engine(url, pool_size=pool_size, max_overflow=20, pool_use_lifo=True)

    def note_use(_: object, record: ConnectionPoolEntry) -> None:
        record.info["used"] = time.monotonic()

    def ping_idle(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info.get("used", math.inf) > trusted_seconds:
            try:
                engine.dialect.do_ping(connection)
            except psycopg.Error as error:
                raise InvalidatePoolError("A connection died while it was idle.") from error

    event.listen(engine, "checkin", note_use)
    event.listen(engine, "checkout", ping_idle)
    return engine


class Database:
    """Sessions on one engine, and the queue that their messages go to after the commit."""

    def __init__(self, engine: Engine, queue: Sender) -> None:
        self.engine = engine
        self.queue = queue
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def session_scope(self, *, snapshot: bool = False) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any exception; messages go out after the commit.

        With `snapshot`, every statement sees the database as it was at the first one (REPEATABLE READ).
        """
        engine = self.engine.execution_options(isolation_level="REPEATABLE READ") if snapshot else self.engine
        with Session(engine, expire_on_commit=False) as session:
            with session.begin() as transaction:
                try:
                    yield session
                except BaseException:
                    _abandon_copy(session)
                    raise
                # Not active: the body rolled back itself, and nothing is committed.
                messages = session.info.get("messages", []) if transaction.is_active else []
            for task_name, arguments in messages:
                self.queue.send(task_name, *arguments)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Statements that only read, each of what is committed when it begins, without a transaction around them: one
        exchange with the server each, where a transaction of one statement takes three."""
        with self._autocommit.connect() as connection:
            yield connection

    def read_row(self, statement: str, parameters: Mapping[str, object]) -> tuple[Any, ...] | None:
        """Return the first row of a statement of psycopg's that only reads, as `reading` does; without SQLAlchemy,
        which takes several times as long as a statement that finds one row."""
        with self.reading() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            try:
                return driver.execute(statement, parameters).fetchone()
            except psycopg.Error as error:
                if is_outage(error):
                    connection.invalidate(error)
                raise

    @contextmanager
    def advisory_lock(self, lock: AdvisoryLock, id_: int = 0, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Hold a lock of the whole database, if it is free or gets free in time, on a connection of its own.

        A crash frees it.
        """
        key = key_of(lock, id_)
        with self._autocommit.connect() as connection:
            ends = time.monotonic() + wait_seconds
            while not (held := _try_lock(connection, key)) and time.monotonic() < ends:
                time.sleep(_LOCK_POLL_SECONDS)
            try:
                yield held
            finally:
                if held:
                    connection.execute(text("SELECT pg_advisory_unlock(:lock, :id)"), key)


def _try_lock(connection: Connection, key: dict[str, int]) -> bool:
    return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:lock, :id)"), key))


def ping(session: Session) -> None:
    """Have the database answer; raises what its outage raises."""
    session.execute(text("SELECT 1"))


def is_outage(error: BaseException) -> bool:
    """Return whether an error of SQLAlchemy or psycopg says that the connection was lost, or could not be made."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(original, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # Class 08 is connection exceptions, 57P the server's shutdowns; without a code the connection broke.
    return original.sqlstate is None or original.sqlstate.startswith(("08", "57P"))


def is_storable(value: str) -> bool:
    """Return whether PostgreSQL can store the text: it has no NUL and no lone surrogate."""
    return _NOT_STORABLE.search(value) is None


def driver_connection(session: Session) -> psycopg.Connection:
    """Return the session's own psycopg connection, inside its transaction, for COPY."""
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    session.info["driver_connection"] = connection
    return connection


def _abandon_copy(session: Session) -> None:
    """Close the connection if a COPY is still under way, because its reader failed: a rollback would wait for the rest
    of the rows for ever."""
    connection: psycopg.Connection | None = session.info.get("driver_connection")
    if connection is not None and connection.info.transaction_status is TransactionStatus.ACTIVE:
        session.invalidate()
