"""A gallery in a PostgreSQL table with pgvector.

    postgresql://user:password@host:port/database?table=items&key=id&embedding=embedding[&side_information=psi]

The new side is another column (or two) of the same rows, `embedding_new_NAME`. A switch renames it to `embedding`, and
what was called so to `embedding_before_NAME`, in one transaction: who reads by the column's name sees one space or the
other. Triggers note the keys of rows that are written meanwhile; `settle` brings those to the new side.

Why nothing is lost. A row that is changed after `prepare` is noted in the transaction that changes it, and stays in the
table of changes, settled or not, until the switch. `write` leaves noted rows alone, so it cannot replace what `settle`
wrote by something older; `settle` marks a key only if no transaction changed it since its vector was read. Each takes
an advisory lock, shared or not, so that a `write` that began before a change was noted has ended when that change is
settled. A switch locks the table against writers, settles the rest (crash point `connectors.pgvector.settled`), renames
(`connectors.pgvector.renamed`), commits.

Locks are waited for less long than PostgreSQL takes to look for a deadlock, and asked for again: writers of the table
are never chosen to fail, and queries do not queue behind a lock that waits for a long one. Only the first lock of a
transaction, which does not hold up queries, is waited for longer: so long that an autovacuum of the table, which
follows every backfill, is cancelled in its favour.

What is not noticed: writes under DISABLE TRIGGER. TRUNCATE empties both sides, being rows of one table.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from psycopg import sql

from service.connectors.address import Address
from service.connectors.pgvector_connection import SNAPSHOT, PgvectorConnection, answering
from service.connectors.pgvector_rows import indexes, read_pair, read_payloads, within
from service.connectors.pgvector_sides import Sides
from service.connectors.pgvector_table import Names, Pair, Place, find_place
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
    needed,
    part_of,
    refuse_other_dims,
)

_Result = TypeVar("_Result")

_REQUIRED = ("table", "key", "embedding")
_OPTIONAL = ("side_information", "host", "sslmode", "sslrootcert", "sslcert", "sslkey")
_SETTLED_AT_ONCE = 1_000


def connect(address: Address, new: NewSide | None) -> "PgvectorStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return PgvectorStore(address.checked(_REQUIRED, _OPTIONAL), new)


class PgvectorStore:
    """A `service.connectors.store.ExternalStore`: what each method does inside a transaction is in `Sides`."""

    def __init__(self, address: Address, new: NewSide | None, patience_seconds: float = 60.0) -> None:
        """`patience_seconds` is how long a lock is asked for, by and by."""
        self._new = new
        self.patience_seconds = patience_seconds
        self._connection = PgvectorConnection(address)
        with answering(), self._connection.opened().transaction(), self._connection.opened().cursor() as cursor:
            self._place: Place = find_place(cursor, address)
            if new is not None:
                Names(self._place, new.name).refuse_long()
        self._transact(Sides.layout)

    def describe(self) -> Description:
        return self._transact(Sides.describe, SNAPSHOT)

    def bounds(self, rows: int) -> list[str]:
        return self._transact(lambda sides: sides.bounds(rows), SNAPSHOT)

    def read(self, keys: KeyRange) -> Rows:
        where = within(self._place, keys)
        return self._transact(lambda sides: read_pair(sides.cursor, self._place, sides.layout().old, where), SNAPSHOT)

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        where = within(self._place, keys)
        return self._transact(
            lambda sides: read_payloads(sides.cursor, self._place, sides.layout().old, where), SNAPSHOT
        )

    def prepare(self) -> None:
        self._transact(Sides.prepare)

    def write(self, keys: KeyRange, rows: Rows) -> None:
        refuse_other_dims(rows, needed(self._new))
        size = self._transact(Sides.rows_at_once)
        after, starts = keys.after, range(0, max(1, len(rows.keys)), size)
        for start in starts:
            part = slice(start, start + size)
            upto = keys.upto if start == starts[-1] else rows.keys[part][-1]
            self._write_part(KeyRange(after, upto), part_of(rows, part))
            after = upto

    def _write_part(self, keys: KeyRange, rows: Rows) -> None:
        self._transact(lambda sides: sides.write_part(keys, rows))

    def read_new(self, keys: KeyRange) -> Rows:
        where = within(self._place, keys)
        return self._transact(lambda sides: read_pair(sides.cursor, self._place, sides.new_pair(), where), SNAPSHOT)

    def changed_keys(self, limit: int) -> list[str]:
        return [key for key, _ in self._transact(lambda sides: sides.changed(limit))]

    def settle(self, transform: Transform, limit: int) -> int:
        changed, rows = self._transact(lambda sides: sides.read_changed(limit), SNAPSHOT)
        if not changed:
            return 0
        made = transform(rows) if rows.keys else None
        self._transact(lambda sides: sides.settle(changed, made))
        return len(changed)

    def index(self) -> None:
        layout = self._transact(Sides.layout)
        new = layout.new
        if new is None:
            raise StoreRefused("There is no new side: prepare it first.")
        names = Names(self._place, needed(self._new).name)
        old = [layout.old.embedding.name]
        for number, definition in enumerate(self._transact(lambda sides: indexes(sides.cursor, self._place, old))):
            self._create_index(names.index(number), definition, new)

    def _create_index(self, name: str, like: tuple[str, str, str, list[str] | None], new: Pair) -> None:
        """Create an index on the new side as the old one has it, without a lock against writers."""
        method, schema, operators, options = like
        index = sql.Identifier(self._place.table[0], name)
        with answering():
            connection = self._connection.opened()
            found = connection.execute(
                "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s) AND indrelid = %s",
                [index.as_string(connection), self._place.oid],
            ).fetchone()
            if found is not None and found[0]:
                return
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index))  # of a crash
            connection.execute(
                sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({} {})").format(
                    sql.Identifier(name),
                    self._place.table_sql,
                    sql.Identifier(method),
                    sql.Identifier(new.embedding.name),
                    sql.Identifier(schema, operators),
                )
                + (sql.SQL(f" WITH ({', '.join(options)})") if options else sql.SQL(""))
            )

    def switch(self, transform: Transform) -> None:
        layout = self._transact(Sides.layout)
        if layout.is_switched:
            return
        self._transact(Sides.refuse_unwritten)
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline:
            is_little_left = self.settle(transform, _SETTLED_AT_ONCE) < _SETTLED_AT_ONCE  # 1. writers go on
            if is_little_left and self._transact(lambda sides: sides.switch(transform)):
                return
        raise StoreAway("Rows of the table change faster than they can be brought to the new side.")

    def switch_back(self, *, forget_written: bool = False) -> None:
        self._transact(lambda sides: sides.switch_back(forget_written))

    def is_switched(self) -> bool:
        needed(self._new)
        return self._transact(Sides.layout).is_switched

    def drop_new(self) -> None:
        needed(self._new)
        self._transact(Sides.drop_new)

    def drop_old(self) -> None:
        needed(self._new)
        self._transact(Sides.validate)
        self._transact(Sides.drop_old)

    def searched(self, query: Vectors, k: int) -> list[str]:
        return self._transact(lambda sides: sides.searched(query, k))

    def close(self) -> None:
        self._connection.close()

    def _transact(self, work: Callable[[Sides], _Result], mode: str = "READ COMMITTED") -> _Result:
        """Do something in a transaction of its own; again, where a lock was not given in time."""
        place, new = self._place, self._new
        return self._connection.transact(
            place.types_schema, lambda cursor: work(Sides(cursor, place, new)), mode, self.patience_seconds
        )
