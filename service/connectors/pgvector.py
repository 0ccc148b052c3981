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

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from service.connectors.address import Address
from service.connectors.pgvector_rows import (
    among,
    as_text,
    dim_of,
    empty,
    fill,
    indexes,
    noted,
    read_pair,
    read_payloads,
    within,
)
from service.connectors.pgvector_table import (
    Cursor,
    Layout,
    Names,
    Pair,
    Place,
    find_layout,
    find_place,
    ignore,
    notice,
    refuse_another_upgrade,
    refuse_what_would_not_follow,
)
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
    part_of,
    refuse_other_dims,
)
from service.crash_points import crash_point

_Result = TypeVar("_Result")

_REQUIRED = ("table", "key", "embedding")
_OPTIONAL = ("side_information", "host", "sslmode", "sslrootcert", "sslcert", "sslkey")
_METRICS = {"l2_ops": "l2", "cosine_ops": "cosine", "ip_ops": "ip"}  # after vector_ or halfvec_
_OPERATORS = {"l2": "<->", "cosine": "<=>", "ip": "<#>", None: "<=>"}
_WRITE_ROWS = 1_000  # of a transaction: its rows are locked for so long
_WRITE_ROWS_INDEXED = 100  # as long as that, where each row is inserted into an index once more
_SETTLED_AT_ONCE = 1_000
_LAST_ROWS = 2_000  # fewer are transformed while writers wait
_LOCK_MILLISECONDS = 400  # less than deadlock_timeout
_ADVISORY_MILLISECONDS = 30_000  # nothing else is locked yet
_ADVISORY_CLASS = 0x67757073
_SNAPSHOT = "REPEATABLE READ READ ONLY"


def connect(address: Address, new: NewSide | None) -> "PgvectorStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return PgvectorStore(address.checked(_REQUIRED, _OPTIONAL), new)


class PgvectorStore:
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, address: Address, new: NewSide | None, patience_seconds: float = 60.0) -> None:
        """`patience_seconds` is how long a lock is asked for, by and by."""
        self._address = address
        self._new = new
        self.patience_seconds = patience_seconds
        self._open: psycopg.Connection | None = None
        with _answering(), self._connection().transaction(), self._connection().cursor() as cursor:
            self._place: Place = find_place(cursor, address)
            if new is not None:
                Names(self._place, new.name).refuse_long()
        self._transact(self._layout)

    def describe(self) -> Description:
        return self._transact(self._describe, _SNAPSHOT)

    def bounds(self, rows: int) -> list[str]:
        def find(cursor: Cursor) -> list[str]:
            found = cursor.execute(
                sql.SQL(
                    "SELECT key FROM (SELECT {key}::text AS key, row_number() OVER (ORDER BY {key}) AS number"
                    " FROM {table} WHERE {embedding} IS NOT NULL) AS numbered WHERE number % {rows} = 0 ORDER BY number"
                ).format(**self._parts(self._layout(cursor).old), rows=sql.Literal(rows))
            )
            return [key for (key,) in found]

        return self._transact(find, _SNAPSHOT)

    def read(self, keys: KeyRange) -> Rows:
        return self._transact(
            lambda cursor: read_pair(cursor, self._place, self._layout(cursor).old, within(self._place, keys)),
            _SNAPSHOT,
        )

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        return self._transact(
            lambda cursor: read_payloads(cursor, self._place, self._layout(cursor).old, within(self._place, keys)),
            _SNAPSHOT,
        )

    def prepare(self) -> None:
        self._transact(self._prepare)

    def write(self, keys: KeyRange, rows: Rows) -> None:
        refuse_other_dims(rows, self._needed())
        size = self._transact(self._rows_at_once)
        after, starts = keys.after, range(0, max(1, len(rows.keys)), size)
        for start in starts:
            part = slice(start, start + size)
            upto = keys.upto if start == starts[-1] else rows.keys[part][-1]
            self._write_part(KeyRange(after, upto), part_of(rows, part))
            after = upto

    def read_new(self, keys: KeyRange) -> Rows:
        return self._transact(
            lambda cursor: read_pair(cursor, self._place, self._new_pair(cursor), within(self._place, keys)), _SNAPSHOT
        )

    def changed_keys(self, limit: int) -> list[str]:
        return [key for key, _ in self._transact(lambda cursor: self._changed(cursor, limit))]

    def settle(self, transform: Transform, limit: int) -> int:
        changed, rows = self._transact(lambda cursor: self._read_changed(cursor, limit), _SNAPSHOT)
        if not changed:
            return 0
        made = transform(rows) if rows.keys else None

        def store(cursor: Cursor) -> None:
            self._exclude(cursor, "pg_advisory_xact_lock")
            current = set(self._changed(cursor)) & set(changed)
            self._bring(cursor, sorted(current), made)

        self._transact(store)
        return len(changed)

    def index(self) -> None:
        layout = self._transact(self._layout)
        new = layout.new
        if new is None:
            raise StoreRefused("There is no new side: prepare it first.")
        for number, definition in enumerate(
            self._transact(lambda cursor: indexes(cursor, self._place, [layout.old.embedding.name]))
        ):
            self._create_index(self._names().index(number), definition, new)

    def switch(self, transform: Transform) -> None:
        layout = self._transact(self._layout)
        if layout.is_switched:
            return
        self._transact(self._refuse_unwritten)
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline:
            is_little_left = self.settle(transform, _SETTLED_AT_ONCE) < _SETTLED_AT_ONCE  # 1. writers go on
            if is_little_left and self._transact(lambda cursor: self._switch(cursor, transform)):
                return
        raise StoreAway("Rows of the table change faster than they can be brought to the new side.")

    def switch_back(self, *, forget_written: bool = False) -> None:
        self._transact(lambda cursor: self._switch_back(cursor, forget_written))

    def is_switched(self) -> bool:
        self._needed()
        return self._transact(self._layout).is_switched

    def drop_new(self) -> None:
        def drop(cursor: Cursor) -> None:
            self._stop_writers(cursor)
            layout = self._layout(cursor)
            if layout.is_switched:
                raise StoreRefused("Searches see the new side: switch back before it is dropped.")
            self._drop(cursor, layout.new)

        self._needed()
        self._transact(drop)

    def drop_old(self) -> None:
        def validate(cursor: Cursor) -> None:
            self._wait_for_autovacuum(cursor)
            for name in self._constraints(cursor):
                cursor.execute(self._alter("VALIDATE CONSTRAINT {}", name))

        def drop(cursor: Cursor) -> None:
            self._stop_writers(cursor)
            layout = self._layout(cursor)
            if not layout.is_switched and layout.new is not None:
                raise StoreRefused("Searches see the old side: switch before it is dropped.")
            names = self._names()
            for column, constraint in zip(names.searched, names.filled, strict=True):
                if constraint in self._constraints(cursor):
                    cursor.execute(self._alter("ALTER {} SET NOT NULL", column))  # proved by the constraint
                    cursor.execute(self._alter("DROP CONSTRAINT {}", constraint))
            self._drop(cursor, layout.old if layout.is_switched else None)

        self._needed()
        self._transact(validate)
        self._transact(drop)

    def searched(self, query: Vectors, k: int) -> list[str]:
        def find(cursor: Cursor) -> list[str]:
            layout = self._layout(cursor)
            pair = layout.new if layout.is_switched and layout.new else layout.old
            parts = self._parts(pair) | {"operator": sql.SQL(_OPERATORS[self._metric(cursor, layout)])}
            found = cursor.execute(
                sql.SQL(
                    "SELECT {key}::text FROM {table} WHERE {embedding} IS NOT NULL"
                    " ORDER BY {embedding} {operator} {query}::{kind} LIMIT {k}"
                ).format(
                    **parts, query=sql.Literal(as_text(query)), kind=sql.SQL(pair.embedding.kind), k=sql.Literal(k)
                )
            )
            return [key for (key,) in found]

        return self._transact(find)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    # What each does inside a transaction.

    def _describe(self, cursor: Cursor) -> Description:
        layout = self._layout(cursor)
        old = layout.old
        counts = cursor.execute(
            sql.SQL(
                "SELECT count(*), count(*) FILTER (WHERE {} IS NULL) FROM {table} WHERE {embedding} IS NOT NULL"
            ).format(sql.Identifier(old.columns[-1].name), **self._parts(old))
        ).fetchone()
        assert counts is not None
        if counts[1]:
            raise StoreRefused(f"{counts[1]} rows have an embedding and no side information.")
        dims = [dim_of(cursor, self._place, old, side) for side in range(len(old.columns))]
        warning = None
        if indexes(cursor, self._place, [old.embedding.name]):
            warning = (
                "The old column has an index, to which each row that is written is added once more:"
                " writing takes as long as its insertion."
            )
        return Description(
            rows=counts[0],
            embedding_dim=dims[0],
            side_information_dim=dims[1] if old.side_information else None,
            metric=self._metric(cursor, layout),
            dtype="float16" if old.embedding.kind == "halfvec" else "float32",
            notices_writes=True,
            warning=warning,
        )

    def _prepare(self, cursor: Cursor) -> None:
        new, names, place = self._needed(), self._names(), self._place
        self._stop_writers(cursor)
        layout = self._layout(cursor)
        if layout.new is not None:
            found = [column.dim for column in layout.new.columns]
            if found != [dim for dim in (new.embedding_dim, new.side_information_dim) if dim is not None]:
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        refuse_another_upgrade(cursor, place, names)
        refuse_what_would_not_follow(cursor, place, layout.old)
        if new.side_information_dim is not None and place.side_information is None:
            taken = cursor.execute(
                "SELECT FROM pg_attribute WHERE attrelid = %s AND attname = %s", [place.oid, names.searched[1]]
            ).fetchone()
            if taken is not None:
                raise StoreRefused("The new side has side information: name its column in the URL, side_information=….")
        kind = layout.old.embedding.kind
        for name, dim in zip(names.new, (new.embedding_dim, new.side_information_dim), strict=True):
            if dim is not None:
                cursor.execute(self._alter(f"ADD COLUMN {{}} {kind}({int(dim)})", name))
        cursor.execute(
            sql.SQL(
                "CREATE TABLE {} AS SELECT {} AS key, pg_current_xact_id() AS change, false AS settled FROM {}"
            ).format(names.changes, place.key_sql, place.table_sql)
            + sql.SQL(" WITH NO DATA")
        )
        cursor.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (key)").format(names.changes))
        cursor.execute(sql.SQL("CREATE INDEX ON {} (key) WHERE NOT settled").format(names.changes))
        notice(cursor, place, names, layout.old)

    def _rows_at_once(self, cursor: Cursor) -> int:
        old = self._layout(cursor).old.embedding.name
        return _WRITE_ROWS_INDEXED if indexes(cursor, self._place, [old]) else _WRITE_ROWS

    def _write_part(self, keys: KeyRange, rows: Rows) -> None:
        def store(cursor: Cursor) -> None:
            self._exclude(cursor, "pg_advisory_xact_lock_shared")
            place, new = self._place, self._unswitched(cursor)
            unnoted = sql.SQL("NOT ") + noted(place, self._names())
            fill(cursor, place, (self._layout(cursor).old, new), rows, unnoted)
            others = sql.SQL("{} AND {} AND NOT {}").format(within(place, keys), unnoted, among(place, rows.keys))
            empty(cursor, place, new, others)

        self._transact(store)

    def _switch(self, cursor: Cursor, transform: Transform) -> bool:
        """Switch, and return whether that was done; False where too many rows are left for writers to wait for."""
        place, names = self._place, self._names()
        self._stop_writers(cursor)  # 2. writers wait
        layout = self._layout(cursor)
        if layout.is_switched:
            return True
        new = self._unswitched(cursor)
        changed, rows = self._read_changed(cursor, _LAST_ROWS)
        if len(changed) == _LAST_ROWS:
            return False
        self._bring(cursor, changed, transform(rows) if rows.keys else None)  # 3.
        crash_point("connectors.pgvector.settled")
        cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(place.table_sql))  # 4. readers wait
        ignore(cursor, place, names)
        for side, column in enumerate(layout.old.columns):
            self._rename(cursor, column.name, names.before[side])
            if column.not_null:
                cursor.execute(self._alter("ALTER {} DROP NOT NULL", names.before[side]))
        for side, column in enumerate(new.columns):
            self._rename(cursor, column.name, names.searched[side])
        for side, (column, _) in enumerate(zip(layout.old.columns, new.columns, strict=False)):
            if column.not_null:
                check = "ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID"
                cursor.execute(self._alter(check, names.filled[side], names.searched[side]))
        cursor.execute(sql.SQL("TRUNCATE {}").format(names.changes))
        switched = self._layout(cursor)
        assert switched.new is not None
        notice(cursor, place, names, switched.new)
        crash_point("connectors.pgvector.renamed")
        return True

    def _switch_back(self, cursor: Cursor, forget_written: bool) -> None:
        place, names = self._place, self._names()
        self._stop_writers(cursor)
        layout = self._layout(cursor)
        if not layout.is_switched or layout.new is None:
            return
        written = noted(place, names)
        found = cursor.execute(sql.SQL("SELECT count(*) FROM {} t WHERE ").format(place.table_sql) + written).fetchone()
        count = 0 if found is None else int(found[0])
        if count and not forget_written:
            raise StoreRefused(
                f"{count} rows were written since the switch: the old side has none or an older embedding of them."
            )
        cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(place.table_sql))
        ignore(cursor, place, names)
        if count:
            empty(cursor, place, layout.old, written)
        constraints = self._constraints(cursor)
        for name in constraints:
            cursor.execute(self._alter("DROP CONSTRAINT {}", name))
        for side, column in enumerate(layout.new.columns):
            self._rename(cursor, column.name, names.new[side])
        for side, column in enumerate(layout.old.columns):
            self._rename(cursor, column.name, names.searched[side])
            if names.filled[side] in constraints and not count:
                cursor.execute(self._alter("ALTER {} SET NOT NULL", names.searched[side]))
        # What was written since stays on the new side as it is.
        cursor.execute(sql.SQL("UPDATE {} SET settled = true").format(names.changes))
        notice(cursor, place, names, self._layout(cursor).old)

    def _drop(self, cursor: Cursor, pair: Pair | None) -> None:
        names = self._names()
        ignore(cursor, self._place, names)
        cursor.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(names.note))
        cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(names.changes))
        for column in pair.columns if pair else []:
            cursor.execute(self._alter("DROP COLUMN {}", column.name))

    def _refuse_unwritten(self, cursor: Cursor) -> None:
        layout, new = self._layout(cursor), self._unswitched(cursor)
        found = cursor.execute(
            sql.SQL(
                "SELECT count(*) FROM {table} t WHERE {embedding} IS NOT NULL AND {} IS NULL"
                " AND NOT EXISTS (SELECT FROM {} c WHERE c.key = t.{key} AND NOT c.settled)"
            ).format(sql.Identifier(new.embedding.name), self._names().changes, **self._parts(layout.old))
        ).fetchone()
        if found is not None and found[0]:
            raise StoreRefused(f"{found[0]} rows have no embedding on the new side: write them before the switch.")

    def _read_changed(self, cursor: Cursor, limit: int) -> tuple[list[tuple[str, str]], Rows]:
        """Return changed keys, each with the transaction that changed it, and the old side's rows of them."""
        changed = self._changed(cursor, limit)
        keys = [key for key, _ in changed]
        return changed, read_pair(cursor, self._place, self._layout(cursor).old, among(self._place, keys))

    def _changed(self, cursor: Cursor, limit: int | None = None) -> list[tuple[str, str]]:
        layout = self._layout(cursor)
        if layout.is_switched or layout.new is None:
            return []
        return cursor.execute(
            sql.SQL("SELECT key::text, change::text FROM {} WHERE NOT settled ORDER BY key LIMIT {}").format(
                self._names().changes, sql.Literal(limit)
            )
        ).fetchall()

    def _bring(self, cursor: Cursor, changed: list[tuple[str, str]], made: Rows | None) -> None:
        """Write those of the rows whose keys are given to the new side, let it have none of the other keys, and mark
        the keys as settled."""
        if not changed:
            return
        place, new = self._place, self._unswitched(cursor)
        keys = {key for key, _ in changed}
        rows = None if made is None else part_of(made, [row for row, key in enumerate(made.keys) if key in keys])
        if rows is not None:
            refuse_other_dims(rows, self._needed())
            fill(cursor, place, (self._layout(cursor).old, new), rows)
        empty(cursor, place, new, among(place, sorted(keys - set(rows.keys if rows else []))))
        cursor.execute(
            sql.SQL(
                "UPDATE {} c SET settled = true FROM unnest({}::text[], {}::text[]) AS d(key, change)"
                " WHERE c.key = d.key::" + place.key_type + " AND c.change = d.change::xid8"
            ).format(
                self._names().changes,
                sql.Literal([key for key, _ in changed]),
                sql.Literal([change for _, change in changed]),
            )
        )

    def _create_index(self, name: str, like: tuple[str, str, str, list[str] | None], new: Pair) -> None:
        """Create an index on the new side as the old one has it, without a lock against writers."""
        method, schema, operators, options = like
        index = sql.Identifier(self._place.table[0], name)
        with _answering():
            connection = self._connection()
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

    # Small things.

    def _needed(self) -> NewSide:
        if self._new is None:
            raise StoreRefused("The store was opened without a new side.")
        return self._new

    def _names(self) -> Names:
        return Names(self._place, self._needed().name)

    def _layout(self, cursor: Cursor) -> Layout:
        return find_layout(cursor, self._place, self._new)

    def _new_pair(self, cursor: Cursor) -> Pair:
        self._needed()
        new = self._layout(cursor).new
        if new is None:
            raise StoreRefused("There is no new side: prepare it first.")
        return new

    def _unswitched(self, cursor: Cursor) -> Pair:
        new = self._new_pair(cursor)
        if self._layout(cursor).is_switched:
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")
        return new

    def _metric(self, cursor: Cursor, layout: Layout) -> str | None:
        sides = [pair.embedding.name for pair in (layout.old, layout.new) if pair is not None]
        for _, _, operators, _ in indexes(cursor, self._place, sides):
            return _METRICS.get(operators.partition("_")[2])
        return None

    def _parts(self, pair: Pair) -> dict[str, sql.Composable]:
        return {
            "table": self._place.table_sql,
            "key": self._place.key_sql,
            "embedding": sql.Identifier(pair.embedding.name),
        }

    def _alter(self, change: str, *names: str) -> sql.Composed:
        return sql.SQL("ALTER TABLE {} ").format(self._place.table_sql) + sql.SQL(change).format(
            *map(sql.Identifier, names)
        )

    def _rename(self, cursor: Cursor, name: str, to: str) -> None:
        cursor.execute(self._alter("RENAME COLUMN {} TO {}", name, to))

    def _constraints(self, cursor: Cursor) -> list[str]:
        found = cursor.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s AND conname = ANY(%s)",
            [self._place.oid, self._names().filled],
        )
        return [name for (name,) in found]

    def _exclude(self, cursor: Cursor, function: str) -> None:
        """Take the lock by which a `write` and a `settle` exclude each other, at the beginning of a transaction."""
        oid = self._place.oid - 2**32 if self._place.oid >= 2**31 else self._place.oid
        cursor.execute(
            f"SELECT set_config('lock_timeout', '{_ADVISORY_MILLISECONDS}', true), {function}(%s, %s)",
            [_ADVISORY_CLASS, oid],
        )
        cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")

    def _stop_writers(self, cursor: Cursor) -> None:
        """Lock the table against writers, at the beginning of a transaction."""
        self._wait_for_autovacuum(cursor)
        cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(self._place.table_sql))
        cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")

    def _wait_for_autovacuum(self, cursor: Cursor) -> None:
        """Wait for the next lock until PostgreSQL has cancelled an autovacuum that holds the table, which it does for
        whoever waits for deadlock_timeout. Nothing else is to be locked yet."""
        cursor.execute(
            "SELECT set_config('lock_timeout', (setting::int + %s)::text, true) FROM pg_settings"
            " WHERE name = 'deadlock_timeout'",
            [_LOCK_MILLISECONDS],
        )

    def _transact(self, work: Callable[[Cursor], _Result], mode: str = "READ COMMITTED") -> _Result:
        """Do something in a transaction of its own; again, where a lock was not given in time."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                with _answering(), self._connection().transaction(), self._connection().cursor() as cursor:
                    cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {mode}")
                    cursor.execute(
                        "SELECT set_config('search_path', quote_ident(%s) || ', pg_catalog', true),"
                        " set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true),"
                        " set_config('row_security', 'off', true)",
                        [self._place.types_schema, str(_LOCK_MILLISECONDS)],
                    )
                    return work(cursor)
            except _Locked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - a pause

    def _connection(self) -> psycopg.Connection:
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


class _Locked(StoreAway):
    """Others hold a lock."""


@contextmanager
def _answering() -> Iterator[None]:
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
