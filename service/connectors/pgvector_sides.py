"""Both sides of a pgvector table, inside one transaction of the store's (`service.connectors.pgvector` says why nothing
is lost between them): what is read, written, noted, switched and dropped of them."""

from dataclasses import dataclass
from functools import cached_property

from psycopg import sql

from service.connectors.pgvector_connection import exclude, stop_writers, wait_for_autovacuum
from service.connectors.pgvector_rows import among, as_text, dim_of, empty, fill, indexes, noted, read_pair, within
from service.connectors.pgvector_table import (
    Cursor,
    Layout,
    Names,
    Pair,
    Place,
    find_layout,
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
    StoreRefused,
    Transform,
    Vectors,
    needed,
    part_of,
    refuse_other_dims,
)
from service.crash_points import crash_point

_METRICS = {"l2_ops": "l2", "cosine_ops": "cosine", "ip_ops": "ip"}  # after vector_ or halfvec_
_OPERATORS = {"l2": "<->", "cosine": "<=>", "ip": "<#>", None: "<=>"}
_WRITE_ROWS = 1_000  # of a transaction: its rows are locked for so long
_WRITE_ROWS_INDEXED = 100  # as long as that, where each row is inserted into an index once more
_LAST_ROWS = 2_000  # fewer are transformed while writers wait


@dataclass(frozen=True)
class Sides:
    """The sides of a table as one transaction sees them."""

    cursor: Cursor
    place: Place
    new: NewSide | None

    def describe(self) -> Description:
        layout = self.layout()
        old = layout.old
        counts = self.cursor.execute(
            sql.SQL(
                "SELECT count(*), count(*) FILTER (WHERE {} IS NULL) FROM {table} WHERE {embedding} IS NOT NULL"
            ).format(sql.Identifier(old.columns[-1].name), **self.parts(old))
        ).fetchone()
        assert counts is not None
        if counts[1]:
            raise StoreRefused(f"{counts[1]} rows have an embedding and no side information.")
        dims = [dim_of(self.cursor, self.place, old, side) for side in range(len(old.columns))]
        warning = None
        if indexes(self.cursor, self.place, [old.embedding.name]):
            warning = (
                "The old column has an index, to which each row that is written is added once more:"
                " writing takes as long as its insertion."
            )
        return Description(
            rows=counts[0],
            embedding_dim=dims[0],
            side_information_dim=dims[1] if old.side_information else None,
            metric=self.metric(layout),
            dtype="float16" if old.embedding.kind == "halfvec" else "float32",
            notices_writes=True,
            warning=warning,
        )

    def bounds(self, rows: int) -> list[str]:
        found = self.cursor.execute(
            sql.SQL(
                "SELECT key FROM (SELECT {key}::text AS key, row_number() OVER (ORDER BY {key}) AS number"
                " FROM {table} WHERE {embedding} IS NOT NULL) AS numbered WHERE number % {rows} = 0 ORDER BY number"
            ).format(**self.parts(self.layout().old), rows=sql.Literal(rows))
        )
        return [key for (key,) in found]

    def searched(self, query: Vectors, k: int) -> list[str]:
        layout = self.layout()
        pair = layout.new if layout.is_switched and layout.new else layout.old
        parts = self.parts(pair) | {"operator": sql.SQL(_OPERATORS[self.metric(layout)])}
        found = self.cursor.execute(
            sql.SQL(
                "SELECT {key}::text FROM {table} WHERE {embedding} IS NOT NULL"
                " ORDER BY {embedding} {operator} {query}::{kind} LIMIT {k}"
            ).format(**parts, query=sql.Literal(as_text(query)), kind=sql.SQL(pair.embedding.kind), k=sql.Literal(k))
        )
        return [key for (key,) in found]

    def prepare(self) -> None:
        new, names, place = needed(self.new), self.names, self.place
        stop_writers(self.cursor, self.place)
        layout = self.layout()
        if layout.new is not None:
            found = [column.dim for column in layout.new.columns]
            if found != [dim for dim in (new.embedding_dim, new.side_information_dim) if dim is not None]:
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        refuse_another_upgrade(self.cursor, place, names)
        refuse_what_would_not_follow(self.cursor, place, layout.old)
        if new.side_information_dim is not None and place.side_information is None:
            taken = self.cursor.execute(
                "SELECT FROM pg_attribute WHERE attrelid = %s AND attname = %s", [place.oid, names.searched[1]]
            ).fetchone()
            if taken is not None:
                raise StoreRefused("The new side has side information: name its column in the URL, side_information=….")
        kind = layout.old.embedding.kind
        for name, dim in zip(names.new, (new.embedding_dim, new.side_information_dim), strict=True):
            if dim is not None:
                self.alter(f"ADD COLUMN {{}} {kind}({int(dim)})", name)
        self.cursor.execute(
            sql.SQL(
                "CREATE TABLE {} AS SELECT {} AS key, pg_current_xact_id() AS change, false AS settled FROM {}"
            ).format(names.changes, place.key_sql, place.table_sql)
            + sql.SQL(" WITH NO DATA")
        )
        self.cursor.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (key)").format(names.changes))
        self.cursor.execute(sql.SQL("CREATE INDEX ON {} (key) WHERE NOT settled").format(names.changes))
        notice(self.cursor, place, names, layout.old)

    def rows_at_once(self) -> int:
        """Return of how many rows a transaction may be that writes them."""
        old = self.layout().old.embedding.name
        return _WRITE_ROWS_INDEXED if indexes(self.cursor, self.place, [old]) else _WRITE_ROWS

    def write_part(self, keys: KeyRange, rows: Rows) -> None:
        """Write a part of a range, but for rows that are noted, and let the new side have no others in it."""
        exclude(self.cursor, self.place, "pg_advisory_xact_lock_shared")
        new = self.unswitched()
        unnoted = sql.SQL("NOT ") + noted(self.place, self.names)
        fill(self.cursor, self.place, (self.layout().old, new), rows, unnoted)
        others = sql.SQL("{} AND {} AND NOT {}").format(within(self.place, keys), unnoted, among(self.place, rows.keys))
        empty(self.cursor, self.place, new, others)

    def switch(self, transform: Transform) -> bool:
        """Switch, and return whether that was done; False where too many rows are left for writers to wait for."""
        place, names = self.place, self.names
        stop_writers(self.cursor, self.place)  # 2. writers wait
        layout = self.layout()
        if layout.is_switched:
            return True
        new = self.unswitched()
        changed, rows = self.read_changed(_LAST_ROWS)
        if len(changed) == _LAST_ROWS:
            return False
        self.bring(changed, transform(rows) if rows.keys else None)  # 3.
        crash_point("connectors.pgvector.settled")
        self.cursor.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(place.table_sql)
        )  # 4. readers wait
        ignore(self.cursor, place, names)
        for side, column in enumerate(layout.old.columns):
            self.rename(column.name, names.before[side])
            if column.not_null:
                self.alter("ALTER {} DROP NOT NULL", names.before[side])
        for side, column in enumerate(new.columns):
            self.rename(column.name, names.searched[side])
        for side, (column, _) in enumerate(zip(layout.old.columns, new.columns, strict=False)):
            if column.not_null:
                check = "ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID"
                self.alter(check, names.filled[side], names.searched[side])
        self.cursor.execute(sql.SQL("TRUNCATE {}").format(names.changes))
        switched = self.layout()
        assert switched.new is not None
        notice(self.cursor, place, names, switched.new)
        crash_point("connectors.pgvector.renamed")
        return True

    def switch_back(self, forget_written: bool) -> None:
        place, names = self.place, self.names
        stop_writers(self.cursor, self.place)
        layout = self.layout()
        if not layout.is_switched or layout.new is None:
            return
        written = noted(place, names)
        found = self.cursor.execute(
            sql.SQL("SELECT count(*) FROM {} t WHERE ").format(place.table_sql) + written
        ).fetchone()
        count = 0 if found is None else int(found[0])
        if count and not forget_written:
            raise StoreRefused(
                f"{count} rows were written since the switch: the old side has none or an older embedding of them."
            )
        self.stop_readers()
        ignore(self.cursor, place, names)
        if count:
            empty(self.cursor, place, layout.old, written)
        constraints = self.constraints()
        for name in constraints:
            self.alter("DROP CONSTRAINT {}", name)
        for side, column in enumerate(layout.new.columns):
            self.rename(column.name, names.new[side])
        for side, column in enumerate(layout.old.columns):
            self.rename(column.name, names.searched[side])
            if names.filled[side] in constraints and not count:
                self.alter("ALTER {} SET NOT NULL", names.searched[side])
        # What was written since stays on the new side as it is.
        self.cursor.execute(sql.SQL("UPDATE {} SET settled = true").format(names.changes))
        notice(self.cursor, place, names, self.layout().old)

    def validate(self) -> None:
        """Prove what stands for NOT NULL, without a lock against writers."""
        wait_for_autovacuum(self.cursor)
        for name in self.constraints():
            self.alter("VALIDATE CONSTRAINT {}", name)

    def drop_new(self) -> None:
        stop_writers(self.cursor, self.place)
        layout = self.layout()
        if layout.is_switched:
            raise StoreRefused("Searches see the new side: switch back before it is dropped.")
        self.drop(layout.new)

    def drop_old(self) -> None:
        stop_writers(self.cursor, self.place)
        layout = self.layout()
        if not layout.is_switched and layout.new is not None:
            raise StoreRefused("Searches see the old side: switch before it is dropped.")
        for column, constraint in zip(self.names.searched, self.names.filled, strict=True):
            if constraint in self.constraints():
                self.alter("ALTER {} SET NOT NULL", column)  # proved by the constraint
                self.alter("DROP CONSTRAINT {}", constraint)
        self.drop(layout.old if layout.is_switched else None)

    def drop(self, pair: Pair | None) -> None:
        names = self.names
        ignore(self.cursor, self.place, names)
        self.cursor.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(names.note))
        self.cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(names.changes))
        for column in pair.columns if pair else []:
            self.alter("DROP COLUMN {}", column.name)

    def refuse_unwritten(self) -> None:
        layout, new = self.layout(), self.unswitched()
        found = self.cursor.execute(
            sql.SQL(
                "SELECT count(*) FROM {table} t WHERE {embedding} IS NOT NULL AND {} IS NULL"
                " AND NOT EXISTS (SELECT FROM {} c WHERE c.key = t.{key} AND NOT c.settled)"
            ).format(sql.Identifier(new.embedding.name), self.names.changes, **self.parts(layout.old))
        ).fetchone()
        if found is not None and found[0]:
            raise StoreRefused(f"{found[0]} rows have no embedding on the new side: write them before the switch.")

    def read_changed(self, limit: int) -> tuple[list[tuple[str, str]], Rows]:
        """Return changed keys, each with the transaction that changed it, and the old side's rows of them."""
        changed = self.changed(limit)
        keys = [key for key, _ in changed]
        return changed, read_pair(self.cursor, self.place, self.layout().old, among(self.place, keys))

    def changed(self, limit: int | None = None) -> list[tuple[str, str]]:
        """Return keys whose rows were written and not settled, each with the transaction that did."""
        layout = self.layout()
        if layout.is_switched or layout.new is None:
            return []
        return self.cursor.execute(
            sql.SQL("SELECT key::text, change::text FROM {} WHERE NOT settled ORDER BY key LIMIT {}").format(
                self.names.changes, sql.Literal(limit)
            )
        ).fetchall()

    def settle(self, changed: list[tuple[str, str]], made: Rows | None) -> None:
        """Bring rows that changed, unless they changed again since."""
        exclude(self.cursor, self.place, "pg_advisory_xact_lock")
        self.bring(sorted(set(self.changed()) & set(changed)), made)

    def bring(self, changed: list[tuple[str, str]], made: Rows | None) -> None:
        """Write those of the rows whose keys are given to the new side, let it have none of the other keys, and mark
        the keys as settled."""
        if not changed:
            return
        place, new = self.place, self.unswitched()
        keys = {key for key, _ in changed}
        rows = None if made is None else part_of(made, [row for row, key in enumerate(made.keys) if key in keys])
        if rows is not None:
            refuse_other_dims(rows, needed(self.new))
            fill(self.cursor, place, (self.layout().old, new), rows)
        empty(self.cursor, place, new, among(place, sorted(keys - set(rows.keys if rows else []))))
        self.cursor.execute(
            sql.SQL(
                "UPDATE {} c SET settled = true FROM unnest({}::text[], {}::text[]) AS d(key, change)"
                " WHERE c.key = d.key::" + place.key_type + " AND c.change = d.change::xid8"
            ).format(
                self.names.changes,
                sql.Literal([key for key, _ in changed]),
                sql.Literal([change for _, change in changed]),
            )
        )

    @cached_property
    def names(self) -> Names:
        return Names(self.place, needed(self.new).name)

    def layout(self) -> Layout:
        return find_layout(self.cursor, self.place, self.new)

    def new_pair(self) -> Pair:
        needed(self.new)
        new = self.layout().new
        if new is None:
            raise StoreRefused("There is no new side: prepare it first.")
        return new

    def unswitched(self) -> Pair:
        new = self.new_pair()
        if self.layout().is_switched:
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")
        return new

    def metric(self, layout: Layout) -> str | None:
        sides = [pair.embedding.name for pair in (layout.old, layout.new) if pair is not None]
        for _, _, operators, _ in indexes(self.cursor, self.place, sides):
            return _METRICS.get(operators.partition("_")[2])
        return None

    def parts(self, pair: Pair) -> dict[str, sql.Composable]:
        return {
            "table": self.place.table_sql,
            "key": self.place.key_sql,
            "embedding": sql.Identifier(pair.embedding.name),
        }

    def alter(self, change: str, *names: str) -> None:
        changed = sql.SQL(change).format(*map(sql.Identifier, names))
        self.cursor.execute(sql.SQL("ALTER TABLE {} ").format(self.place.table_sql) + changed)

    def stop_readers(self) -> None:
        self.cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self.place.table_sql))

    def rename(self, name: str, to: str) -> None:
        self.alter("RENAME COLUMN {} TO {}", name, to)

    def constraints(self) -> list[str]:
        found = self.cursor.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s AND conname = ANY(%s)",
            [self.place.oid, self.names.filled],
        )
        return [name for (name,) in found]
