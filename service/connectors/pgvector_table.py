"""A table with a pgvector column, as PostgreSQL's catalog says that it is, and the names of what an upgrade adds to it.

The old side is the columns that the URL names; the new one two more columns of the same rows. A switch renames all of
them. What is noticed stands in a table beside, one row a key, which triggers write to.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql

from service.connectors.address import Address
from service.connectors.store import NewSide, StoreRefused

Cursor = psycopg.Cursor[tuple[Any, ...]]

_KEY_TYPES = {"int2", "int4", "int8", "uuid", "text", "varchar"}
_VECTOR_TYPES = {"vector", "halfvec"}
_LONGEST_NAME = 63  # bytes; PostgreSQL cuts longer ones


@dataclass(frozen=True)
class Place:
    """What the URL names, resolved: `table` is (schema, name), `types_schema` where the extension's types live."""

    oid: int
    table: tuple[str, str]
    types_schema: str
    key: str
    key_type: str
    embedding: str
    side_information: str | None

    @cached_property
    def table_sql(self) -> sql.Identifier:
        return sql.Identifier(*self.table)

    @cached_property
    def key_sql(self) -> sql.Identifier:
        return sql.Identifier(self.key)


@dataclass(frozen=True)
class Column:
    """A column of vectors; `dim` is None where its type does not say."""

    name: str
    kind: str
    dim: int | None
    not_null: bool


@dataclass(frozen=True)
class Pair:
    """The columns of a side."""

    embedding: Column
    side_information: Column | None

    @property
    def columns(self) -> list[Column]:
        return [self.embedding, *([self.side_information] if self.side_information else [])]


@dataclass(frozen=True)
class Names:
    """What an upgrade adds to a table is called: columns by the side they are of while the other is searched."""

    place: Place
    upgrade: str

    @property
    def searched(self) -> list[str]:
        return [self.place.embedding, self.place.side_information or "side_information"]

    @property
    def new(self) -> list[str]:
        return [f"{name}_new_{self.upgrade}" for name in self.searched]

    @property
    def before(self) -> list[str]:
        return [f"{name}_before_{self.upgrade}" for name in self.searched]

    @property
    def filled(self) -> list[str]:
        """Constraints that stand for NOT NULL."""
        return [f"{name}_filled_{self.upgrade}" for name in self.searched]

    @property
    def changes(self) -> sql.Identifier:
        """The table of changed keys: key, change (the transaction that changed it last) and whether it is settled."""
        return sql.Identifier(self.place.table[0], self._changes)

    @property
    def note(self) -> sql.Identifier:
        """The function of the triggers."""
        return sql.Identifier(self.place.table[0], f"{self._changes}_note")

    @property
    def triggers(self) -> list[str]:
        return [f"{self.place.embedding}_rows_{self.upgrade}", f"{self.place.embedding}_values_{self.upgrade}"]

    def index(self, number: int) -> str:
        """An index on the new side, one of so many: its name is its schema's, not its table's."""
        return f"{self.place.table[1]}_{self.place.embedding}_{self.upgrade}_{number}"

    @property
    def _changes(self) -> str:
        return f"{self.place.table[1]}_{self.place.embedding}_changes_{self.upgrade}"

    def refuse_long(self) -> None:
        """Raise `StoreRefused` where PostgreSQL would cut a name."""
        for name in (*self.new, *self.before, *self.filled, *self.triggers, f"{self._changes}_note", self.index(99)):
            if len(name.encode()) > _LONGEST_NAME:
                raise StoreRefused(f"The name {name!r} would be longer than PostgreSQL's {_LONGEST_NAME} bytes.")


def find_place(cursor: Cursor, address: Address) -> Place:
    """Return what a URL names. Raises `StoreRefused` where there is no such table, or none that can be upgraded."""
    named = address.parameters
    table = named["table"]
    quoted = table if '"' in table else ".".join(f'"{part}"' for part in table.split("."))
    extension = cursor.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    if extension is None:
        raise StoreRefused("The database does not have the extension vector.")
    found = cursor.execute(
        "SELECT c.oid, n.nspname, c.relname, c.relkind = 'r' AND NOT c.relhassubclass AND NOT c.relispartition"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)",
        [quoted],
    ).fetchone()
    if found is None:
        raise StoreRefused(f"The database has no table {table!r} that this role sees.")
    oid, schema, name, is_plain = found
    if not is_plain:
        raise StoreRefused(f"{table!r} is not an ordinary table: views, partitions and inheritance are not upgraded.")
    key_type = _key_type(cursor, oid, named["key"])
    return Place(
        oid, (schema, name), extension[0], named["key"], key_type, named["embedding"], named.get("side_information")
    )


def _key_type(cursor: Cursor, oid: int, key: str) -> str:
    found = cursor.execute(
        "SELECT t.typname, a.attnotnull, EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid"
        "   AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum"
        "   AND i.indpred IS NULL AND i.indexprs IS NULL)"
        " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s AND a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        [oid, key],
    ).fetchone()
    if found is None:
        raise StoreRefused(f"The table has no column {key!r}.")
    kind, not_null, is_unique = found
    if kind not in _KEY_TYPES:
        raise StoreRefused(f"The key {key!r} is {kind}; keys are {', '.join(sorted(_KEY_TYPES))}.")
    if not (not_null and is_unique):
        raise StoreRefused(f"The key {key!r} is to be unique (by an index on it alone) and NOT NULL.")
    return str(kind)


def find_columns(cursor: Cursor, place: Place, names: list[str]) -> dict[str, Column]:
    """Return those of the columns that exist."""
    found = cursor.execute(
        "SELECT a.attname, t.typname, a.atttypmod, a.attnotnull"
        " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s AND a.attname = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped",
        [place.oid, names],
    ).fetchall()
    return {name: Column(name, kind, dim if dim > 0 else None, not_null) for name, kind, dim, not_null in found}


def pair_of(columns: dict[str, Column], embedding: str, side_information: str | None) -> Pair:
    """Return a side's columns. Raises `StoreRefused` where one is missing or holds no vectors."""
    for name in (embedding, side_information):
        if name is not None and name not in columns:
            raise StoreRefused(f"The table has no column {name!r}.")
        if name is not None and columns[name].kind not in _VECTOR_TYPES:
            raise StoreRefused(f"The column {name!r} is {columns[name].kind}; vectors are vector or halfvec.")
    return Pair(columns[embedding], None if side_information is None else columns[side_information])


@dataclass(frozen=True)
class Layout:
    """Where the sides are: `new` is None before `prepare`."""

    is_switched: bool
    old: Pair
    new: Pair | None


def find_layout(cursor: Cursor, place: Place, new: NewSide | None) -> Layout:
    """Return where a table's sides are. Raises `StoreRefused` where a column is missing or holds no vectors."""
    if new is None:
        columns = find_columns(cursor, place, [place.embedding, *filter(None, [place.side_information])])
        return Layout(False, pair_of(columns, place.embedding, place.side_information), None)
    names = Names(place, new.name)
    columns = find_columns(cursor, place, [*names.searched, *names.new, *names.before])
    new_names = names.searched if names.before[0] in columns else names.new
    new_pair = None
    if new_names[0] in columns:
        new_pair = pair_of(columns, new_names[0], None if new.side_information_dim is None else new_names[1])
    if names.before[0] in columns:
        old = pair_of(columns, names.before[0], names.before[1] if names.before[1] in columns else None)
        return Layout(True, old, new_pair)
    return Layout(False, pair_of(columns, place.embedding, place.side_information), new_pair)


def refuse_what_would_not_follow(cursor: Cursor, place: Place, old: Pair) -> None:
    """Raise `StoreRefused` where a switch by renaming would break something: what refers to a column goes on to mean
    the old one after it is renamed."""
    owner = cursor.execute(
        "SELECT pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = %s",
        [place.oid],
    ).fetchone()
    assert owner is not None
    if not owner[0]:
        raise StoreRefused(f"Columns are added and renamed by the table's owner: connect as {owner[1]!r}.")
    names = [column.name for column in old.columns]
    for name, is_generated, has_grants in cursor.execute(
        "SELECT attname, attgenerated <> '', attacl IS NOT NULL FROM pg_attribute"
        " WHERE attrelid = %s AND attname = ANY(%s)",
        [place.oid, names],
    ).fetchall():
        if is_generated:
            raise StoreRefused(f"The column {name!r} is generated: it cannot be renamed and written instead.")
        if has_grants:
            raise StoreRefused(f"The column {name!r} has grants of its own, which would stay with it: grant the table.")
    others = cursor.execute(
        "SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d"
        " JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
        " LEFT JOIN pg_constraint c ON d.classid = 'pg_constraint'::regclass AND c.oid = d.objid"
        " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s AND a.attname = ANY(%s)"
        " AND d.classid NOT IN ('pg_class'::regclass, 'pg_attrdef'::regclass) AND c.contype IS DISTINCT FROM 'n'",
        [place.oid, names],
    ).fetchall()
    if others:
        what = "; ".join(sorted(str(other) for (other,) in others))
        raise StoreRefused(
            f"What refers to the column goes on to mean the old one after a switch: {what}. Drop it, and make it again"
            " after the switch."
        )


def refuse_another_upgrade(cursor: Cursor, place: Place, names: Names) -> None:
    """Raise `StoreRefused` where a column is there that another upgrade of this one left."""
    own = {names.new[0], names.before[0]}
    found = cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
        " AND (starts_with(attname, %s) OR starts_with(attname, %s))",
        [place.oid, f"{place.embedding}_new_", f"{place.embedding}_before_"],
    ).fetchall()
    others = [name for (name,) in found if name not in own]
    if others:
        raise StoreRefused(f"The column {others[0]!r} belongs to another upgrade: finalize or abandon that one first.")


def notice(cursor: Cursor, place: Place, names: Names, pair: Pair) -> None:
    """Note writes to a side from this transaction's end on, and to the other no more.

    The function runs as its owner, so that whoever may write to the table needs no more rights. An update is compared
    by value: a trigger of the table's own may change an embedding that the statement does not name.
    """
    key = place.key_sql
    upsert = sql.SQL(
        "INSERT INTO {} VALUES ({}, pg_current_xact_id(), false)"
        " ON CONFLICT (key) DO UPDATE SET change = EXCLUDED.change, settled = false;"
    )
    old_key, new_key = sql.SQL("OLD.{}").format(key), sql.SQL("NEW.{}").format(key)
    body = sql.SQL(
        "BEGIN IF TG_OP <> 'DELETE' THEN {noted_new} END IF;"
        " IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND {old_key} IS DISTINCT FROM {new_key}) THEN {noted_old} END IF;"
        " RETURN NULL; END"
    ).format(
        noted_new=upsert.format(names.changes, new_key),
        noted_old=upsert.format(names.changes, old_key),
        old_key=old_key,
        new_key=new_key,
    )
    cursor.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp AS {}"
        ).format(names.note, sql.Literal(body.as_string(cursor)))
    )
    ignore(cursor, place, names)
    differs = sql.SQL(" OR ").join(
        sql.SQL("OLD.{0} IS DISTINCT FROM NEW.{0}").format(sql.Identifier(name))
        for name in (place.key, *(column.name for column in pair.columns))
    )
    rows, values = map(sql.Identifier, names.triggers)
    for trigger, events, condition in (
        (rows, sql.SQL("INSERT OR DELETE"), sql.SQL("")),
        (values, sql.SQL("UPDATE"), sql.SQL("WHEN ({})").format(differs)),
    ):
        cursor.execute(
            sql.SQL("CREATE TRIGGER {} AFTER {} ON {} FOR EACH ROW {} EXECUTE FUNCTION {}()").format(
                trigger, events, place.table_sql, condition, names.note
            )
        )
        # Also for what replication brings.
        cursor.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(place.table_sql, trigger))


def ignore(cursor: Cursor, place: Place, names: Names) -> None:
    """Note no more writes."""
    for trigger in map(sql.Identifier, names.triggers):
        cursor.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(trigger, place.table_sql))
