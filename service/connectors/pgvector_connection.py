"""A connection to another's PostgreSQL: made when it is needed, with transactions that wait for locks as the store does
(`service.connectors.pgvector` says why), and errors of stores."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from service.connectors.address import Address
from service.connectors.pgvector_table import Cursor, Place
from service.connectors.store import StoreAway, StoreRefused

SNAPSHOT = "REPEATABLE READ READ ONLY"
_LOCK_MILLISECONDS = 400  # less than deadlock_timeout
_ADVISORY_MILLISECONDS = 30_000  # nothing else is locked yet
_ADVISORY_CLASS = 0x67757073

_Result = TypeVar("_Result")


class _Locked(StoreAway):
    """Others hold a lock."""


class PgvectorConnection:
    """A connection to where an address leads; one that broke is made again."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: psycopg.Connection | None = None

    def opened(self) -> psycopg.Connection:
        if self._open is None or self._open.closed:
            address, given = self._address, self._address.parameters
            target: dict[str, Any] = {name: given[name] for name in given if name.startswith("ssl")}
            target |= {
                "host": given.get("host") or address.host,
                "port": address.port,
                "user": address.user,
                "password": address.password,
                "dbname": address.path.strip("/") or None,
                "connect_timeout": 10,
            }
            # Without prepared statements: a pooler may give each transaction another connection.
            self._open = psycopg.connect(autocommit=True, prepare_threshold=None, **target)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    def transact(
        self, types_schema: str, work: Callable[[Cursor], _Result], mode: str, patience_seconds: float
    ) -> _Result:
        """Do something in a transaction of its own; again, where a lock was not given in time."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                with answering(), self.opened().transaction(), self.opened().cursor() as cursor:
                    cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {mode}")
                    cursor.execute(
                        "SELECT set_config('search_path', quote_ident(%s) || ', pg_catalog', true),"
                        " set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true),"
                        " set_config('row_security', 'off', true)",
                        [types_schema, str(_LOCK_MILLISECONDS)],
                    )
                    return work(cursor)
            except _Locked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - a pause


@contextmanager
def answering() -> Iterator[None]:
    """Raise what PostgreSQL raises as errors of stores."""
    try:
        yield
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise _Locked("Transactions of others hold locks on the table for long; the same may succeed later.") from error
    except psycopg.OperationalError as error:
        raise StoreAway(f"PostgreSQL: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise StoreRefused(f"PostgreSQL: {_first_line(error)}") from error


def _first_line(error: psycopg.Error) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def exclude(cursor: Cursor, place: Place, function: str) -> None:
    """Take the lock by which a `write` and a `settle` exclude each other, at the beginning of a transaction."""
    oid = place.oid - 2**32 if place.oid >= 2**31 else place.oid
    cursor.execute(
        f"SELECT set_config('lock_timeout', '{_ADVISORY_MILLISECONDS}', true), {function}(%s, %s)",
        [_ADVISORY_CLASS, oid],
    )
    cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")


def stop_writers(cursor: Cursor, place: Place) -> None:
    """Lock the table against writers, at the beginning of a transaction."""
    wait_for_autovacuum(cursor)
    cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(place.table_sql))
    cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")


def wait_for_autovacuum(cursor: Cursor) -> None:
    """Wait for the next lock until PostgreSQL has cancelled an autovacuum that holds the table, which it does for
    whoever waits for deadlock_timeout. Nothing else is to be locked yet."""
    cursor.execute(
        "SELECT set_config('lock_timeout', (setting::int + %s)::text, true) FROM pg_settings"
        " WHERE name = 'deadlock_timeout'",
        [_LOCK_MILLISECONDS],
    )
