"""Rows of a pgvector table's columns, read and written inside a transaction of the caller's. The table is `t` in
conditions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from psycopg import sql

from service.connectors.pgvector_table import Cursor, Names, Pair, Place
from service.connectors.store import KeyRange, Rows, StoreRefused, Vectors
from service.vectors.copy import read_rows, write_rows
from service.vectors.rows import EmbeddingRows, UnexpectedRow, VectorFormat

_STAGE = "gallery_upgrade_stage"
_ANY = sql.SQL("TRUE")
_VECTOR_INDEXES = ["hnsw", "ivfflat"]
_VECTOR_TYPES = ["vector", "halfvec", "sparsevec"]


def within(place: Place, keys: KeyRange) -> sql.Composable:
    """Return the condition that a row's key lies in a range."""
    conditions: list[sql.Composable] = [sql.SQL("TRUE")]
    for operator, end in (("> ", keys.after), ("<=", keys.upto)):
        if end is not None:
            conditions.append(
                sql.SQL("t.{} " + operator + " {}::" + place.key_type).format(place.key_sql, sql.Literal(end))
            )
    return sql.SQL(" AND ").join(conditions)


def among(place: Place, keys: Sequence[str]) -> sql.Composable:
    """Return the condition that a row's key is one of these."""
    return sql.SQL("t.{} = ANY({}::" + place.key_type + "[])").format(place.key_sql, sql.Literal(list(keys)))


def noted(place: Place, names: Names) -> sql.Composable:
    """Return the condition that a row's key is in the table of changes."""
    return sql.SQL("EXISTS (SELECT FROM {} c WHERE c.key = t.{})").format(names.changes, place.key_sql)


def read_payloads(cursor: Cursor, place: Place, pair: Pair, condition: sql.Composable) -> dict[str, dict[str, Any]]:
    """Return the other columns of the rows with an embedding that meet a condition, by key; none that holds vectors."""
    names = cursor.execute(
        "SELECT a.attname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND t.typname <> ALL(%s) ORDER BY a.attnum",
        (place.oid, list(_VECTOR_TYPES)),
    ).fetchall()
    columns = [sql.Identifier(name) for (name,) in names if name != place.key]
    if not columns:
        return {}
    query = sql.SQL(
        "SELECT t.{}::text, to_jsonb(r) FROM {} t, LATERAL (SELECT {}) r WHERE t.{} IS NOT NULL AND {}"
    ).format(
        place.key_sql,
        place.table_sql,
        sql.SQL(", ").join(sql.SQL("t.{}").format(column) for column in columns),
        sql.Identifier(pair.embedding.name),
        condition,
    )
    return dict(cursor.execute(query).fetchall())


def dim_of(cursor: Cursor, place: Place, pair: Pair, side: int) -> int:
    """Return how many numbers a column's vectors have; where its type does not say, as many as one of them."""
    column = pair.columns[side]
    if column.dim is not None:
        return column.dim
    found = cursor.execute(
        sql.SQL("SELECT vector_dims({0}) FROM {1} WHERE {0} IS NOT NULL LIMIT 1").format(
            sql.Identifier(column.name), place.table_sql
        )
    ).fetchone()
    if found is None:
        raise StoreRefused(f"The column {column.name!r} says no dimension, and has no rows that would.")
    return int(found[0])


def read_pair(cursor: Cursor, place: Place, pair: Pair, condition: sql.Composable) -> Rows:
    """Return the rows with an embedding that meet a condition, by ascending key. The transaction is to see one
    snapshot.

    Raises `StoreRefused` where one has no side information, psycopg's `DataError` for one of another dimension.
    """
    dims = [dim_of(cursor, place, pair, side) for side in range(len(pair.columns))]
    found = sql.SQL("FROM {} t WHERE t.{} IS NOT NULL AND {} ORDER BY t.{}").format(
        place.table_sql, sql.Identifier(pair.embedding.name), condition, place.key_sql
    )
    keys = [key for (key,) in cursor.execute(sql.SQL("SELECT t.{}::text ").format(place.key_sql) + found)]
    vectors = sql.SQL(", ").join(
        sql.SQL(f"t.{{}}::vector({dim})").format(sql.Identifier(column.name))
        for column, dim in zip(pair.columns, dims, strict=True)
    )
    query = sql.SQL("SELECT 0::bigint, 0::bigint, 0::smallint, 0::smallint, 0::real, {} ").format(vectors) + found
    form = VectorFormat(dims[0], dims[1] if len(dims) > 1 else None, "float32")
    try:
        parts = list(read_rows(cursor.connection, query.as_string(cursor), [], form))
    except UnexpectedRow as error:
        raise StoreRefused(f"A row has an embedding and no {pair.columns[-1].name!r}.") from error
    if not parts:
        empty = [np.empty((0, dim), np.float32) for dim in dims]
        return Rows([], empty[0], empty[1] if len(dims) > 1 else None)
    rows = EmbeddingRows.concatenate(parts)
    return Rows(keys, rows.embedding, rows.side_information)


def fill(cursor: Cursor, place: Place, sides: tuple[Pair, Pair], rows: Rows, condition: sql.Composable = _ANY) -> None:
    """Write rows to the second of two sides, where the first has an embedding; once in a transaction."""
    old, new = sides
    side = rows.side_information
    form = VectorFormat(rows.embedding.shape[1], None if side is None else side.shape[1], "float32")
    columns = ", ".join(f"{name} {kind}" for name, kind in form.sql_types.items())
    cursor.execute(f"CREATE TEMPORARY TABLE {_STAGE} ({columns}) ON COMMIT DROP")
    write_rows(cursor.connection, _STAGE, _numbered(rows), form)
    values = [
        (sql.Identifier(column.name), sql.SQL(f"s.{name}::{column.kind}"))
        for column, name in zip(new.columns, ("embedding", "side_information"), strict=False)
    ]
    assign = sql.SQL(", ").join(sql.SQL("{} = {}").format(*value) for value in values)
    differs = sql.SQL(" OR ").join(sql.SQL("t.{} IS DISTINCT FROM {}").format(*value) for value in values)
    cursor.execute(
        sql.SQL(
            "UPDATE {table} t SET {assign} FROM {stage} s JOIN unnest({keys}::text[]) WITH ORDINALITY AS k(key, number)"
            " ON k.number = s.item_id WHERE t.{key} = k.key::" + place.key_type + " AND t.{embedding} IS NOT NULL"
            " AND ({differs}) AND {condition}"
        ).format(
            table=place.table_sql,
            assign=assign,
            stage=sql.Identifier(_STAGE),
            keys=sql.Literal(rows.keys),
            key=place.key_sql,
            embedding=sql.Identifier(old.embedding.name),
            differs=differs,
            condition=condition,
        )
    )


def _numbered(rows: Rows) -> EmbeddingRows:
    count = len(rows.keys)
    return EmbeddingRows(
        item_id=np.arange(1, count + 1),
        revision=np.zeros(count, np.int64),
        origin=np.zeros(count, np.int16),
        hops=np.zeros(count, np.int16),
        uncertainty=np.zeros(count, np.float32),
        embedding=rows.embedding,
        side_information=rows.side_information,
    )


def empty(cursor: Cursor, place: Place, pair: Pair, condition: sql.Composable) -> None:
    """Take the vectors of a side from the rows that meet a condition."""
    names = [sql.Identifier(column.name) for column in pair.columns]
    cursor.execute(
        sql.SQL("UPDATE {} t SET {} WHERE ({}) AND {}").format(
            place.table_sql,
            sql.SQL(", ").join(sql.SQL("{} = NULL").format(name) for name in names),
            sql.SQL(" OR ").join(sql.SQL("t.{} IS NOT NULL").format(name) for name in names),
            condition,
        )
    )


def indexes(cursor: Cursor, place: Place, columns: Sequence[str]) -> list[tuple[str, str, str, list[str] | None]]:
    """Return the vector indexes of columns: access method, the schema and the name of the operator class, options."""
    return cursor.execute(
        "SELECT am.amname, n.nspname, o.opcname, c.reloptions FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam"
        " JOIN pg_opclass o ON o.oid = i.indclass[0] JOIN pg_namespace n ON n.oid = o.opcnamespace"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indrelid = %s AND a.attname = ANY(%s) AND i.indnatts = 1 AND i.indexprs IS NULL"
        " AND i.indpred IS NULL AND i.indisvalid AND am.amname = ANY(%s) ORDER BY i.indexrelid",
        [place.oid, list(columns), _VECTOR_INDEXES],
    ).fetchall()


def as_text(vector: Vectors) -> str:
    """Return (D,) float32 as pgvector writes it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"
