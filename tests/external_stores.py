"""A store of another kind in one SQLite file, which several processes may open, and what tests do with it.

Its URL is `fake:<path>`; beside the file, `<path>.json` says how it behaves, and while `<path>.away` is there it does
not answer.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
)

_TABLES = """
CREATE TABLE old_side (key TEXT PRIMARY KEY, embedding BLOB, side_information BLOB);
CREATE TABLE new_side (key TEXT PRIMARY KEY, embedding BLOB, side_information BLOB);
CREATE TABLE changed (key TEXT PRIMARY KEY);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE writes (first TEXT, rows INTEGER);
CREATE TRIGGER written AFTER INSERT ON old_side BEGIN INSERT OR REPLACE INTO changed VALUES (NEW.key); END;
CREATE TRIGGER gone AFTER DELETE ON old_side BEGIN INSERT OR REPLACE INTO changed VALUES (OLD.key); END;
"""


class SqliteStore:
    """An `ExternalStore`. `meanwhile` is called with the name of a step that is about to be done, and its range."""

    def __init__(
        self,
        path: Path,
        new: NewSide | None = None,
        meanwhile: Callable[[str, KeyRange | None], object] | None = None,
    ) -> None:
        self._path = path
        self._new = new
        self._options: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self._meanwhile = meanwhile or (lambda step, keys: None)

    def describe(self) -> Description:
        with self._connected() as connection:
            (rows,) = connection.execute("SELECT count(*) FROM old_side").fetchone()
            first = connection.execute("SELECT embedding, side_information FROM old_side LIMIT 1").fetchone()
        embedding, side = first or (b"", None)
        side_dim = None if side is None else len(side) // 4
        return Description(
            rows,
            len(embedding) // 4,
            side_dim,
            self._options["metric"],
            self._options["dtype"],
            notices_writes=self._options["notices"],
        )

    def bounds(self, rows: int) -> list[str]:
        with self._connected() as connection:
            keys = [key for (key,) in connection.execute("SELECT key FROM old_side ORDER BY key")]
        return keys[rows - 1 : -1 : rows]

    def read(self, keys: KeyRange) -> Rows:
        return self._read("old_side", keys)

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        return {}

    def prepare(self) -> None:
        assert self._new is not None
        with self._connected() as connection:
            known = self._fact(connection, "name")
            if known == self._new.name:
                return
            if known is not None:
                raise StoreRefused(f"The store is being upgraded already, by {known}.")
            connection.execute("DELETE FROM changed")
            connection.execute("INSERT INTO facts VALUES ('name', ?)", (self._new.name,))

    def write(self, keys: KeyRange, rows: Rows) -> None:
        self._meanwhile("write", keys)
        with self._connected() as connection:
            self._delete("new_side", connection, keys)
            there = {key for (key,) in connection.execute("SELECT key FROM old_side")}
            if self._options["notices"]:
                there -= {key for (key,) in connection.execute("SELECT key FROM changed")}
            for key, *vectors in self._stored(rows):
                if key in there:
                    connection.execute("INSERT INTO new_side VALUES (?, ?, ?)", (key, *vectors))
            connection.execute("INSERT INTO writes VALUES (?, ?)", (rows.keys[0] if rows.keys else "", len(rows.keys)))
        self._meanwhile("written", keys)

    def read_new(self, keys: KeyRange) -> Rows:
        return self._read("new_side", keys)

    def changed_keys(self, limit: int) -> list[str]:
        if not self._options["notices"]:
            return []
        with self._connected() as connection:
            return [key for (key,) in connection.execute("SELECT key FROM changed ORDER BY key LIMIT ?", (limit,))]

    def settle(self, transform: Transform, limit: int) -> int:
        if not self._options["notices"]:
            return 0
        with self._connected() as connection:
            return self._settle(connection, transform, limit)

    def index(self) -> None:
        self._meanwhile("index", None)

    def switch(self, transform: Transform) -> None:
        self._meanwhile("switch", None)
        with self._connected() as connection:
            if self._options["notices"]:
                self._settle(connection, transform, 10**9)
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('switched', 'yes')")
        self._meanwhile("switched", None)

    def switch_back(self, *, forget_written: bool = False) -> None:
        with self._connected() as connection:
            connection.execute("DELETE FROM facts WHERE name = 'switched'")

    def is_switched(self) -> bool:
        with self._connected() as connection:
            return self._fact(connection, "switched") is not None

    def drop_new(self) -> None:
        with self._connected() as connection:
            if self._fact(connection, "switched") is not None:
                raise StoreRefused("Searches see the new side.")
            connection.execute("DELETE FROM new_side")
            connection.execute("DELETE FROM facts")

    def drop_old(self) -> None:
        with self._connected() as connection:
            if self._fact(connection, "switched") is None and self._fact(connection, "name") is not None:
                raise StoreRefused("Searches see the old side.")
            if self._fact(connection, "name") is None:
                return
            connection.execute("DELETE FROM old_side")
            connection.execute("INSERT INTO old_side SELECT * FROM new_side")
            connection.execute("DELETE FROM new_side")
            connection.execute("DELETE FROM facts")

    def searched(self, query: Vectors, k: int) -> list[str]:
        rows = self._read("new_side" if self.is_switched() else "old_side", KeyRange(None, None))
        distances = np.linalg.norm(rows.embedding - query, axis=1)
        return [rows.keys[place] for place in np.argsort(distances, kind="stable")[:k]]

    def close(self) -> None:
        pass

    def put(self, rows: Mapping[str, tuple[Vectors, Vectors | None]]) -> None:
        """Write rows as a user of the store does, on the side that searches see."""
        with self._connected() as connection:
            side = "new_side" if self._fact(connection, "switched") is not None else "old_side"
            for key, (embedding, side_information) in rows.items():
                blobs = [_bytes(embedding), None if side_information is None else _bytes(side_information)]
                connection.execute(f"DELETE FROM {side} WHERE key = ?", (key,))
                connection.execute(f"INSERT INTO {side} VALUES (?, ?, ?)", (key, *blobs))

    def put_old(self, rows: Mapping[str, tuple[Vectors, Vectors | None]]) -> None:
        """Write rows on the old side, as whoever has not heard of a switch."""
        with self._connected() as connection:
            for key, (embedding, side_information) in rows.items():
                blobs = [_bytes(embedding), None if side_information is None else _bytes(side_information)]
                connection.execute("DELETE FROM old_side WHERE key = ?", (key,))
                connection.execute("INSERT INTO old_side VALUES (?, ?, ?)", (key, *blobs))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows as a user of the store does."""
        with self._connected() as connection:
            for side in ("old_side", "new_side") if self._options["notices"] else ("old_side",):
                connection.executemany(f"DELETE FROM {side} WHERE key = ?", [(key,) for key in keys])

    def spoil(self, key: str) -> None:
        """Write something else on the new side."""
        with self._connected() as connection:
            connection.execute("UPDATE new_side SET embedding = zeroblob(length(embedding)) WHERE key = ?", (key,))

    def writes(self) -> list[tuple[str, int]]:
        """Return the first keys and sizes of the ranges that were written, in order."""
        with self._connected() as connection:
            return connection.execute("SELECT * FROM writes").fetchall()

    def _settle(self, connection: sqlite3.Connection, transform: Transform, limit: int) -> int:
        query = "SELECT key FROM changed ORDER BY key LIMIT ?"
        keys = [key for (key,) in connection.execute(query, (limit,)).fetchall()]
        for key in keys:
            found = _rows(connection.execute("SELECT * FROM old_side WHERE key = ?", (key,)).fetchall())
            connection.execute("DELETE FROM new_side WHERE key = ?", (key,))
            if found.keys:
                for row in self._stored(transform(found)):
                    connection.execute("INSERT INTO new_side VALUES (?, ?, ?)", row)
            connection.execute("DELETE FROM changed WHERE key = ?", (key,))
        return len(keys)

    def _stored(self, rows: Rows) -> Iterator[tuple[str, bytes, bytes | None]]:
        for place, key in enumerate(rows.keys):
            side = None if rows.side_information is None else rows.side_information[place]
            yield key, self._rounded(rows.embedding[place]), None if side is None else self._rounded(side)

    def _rounded(self, vector: Vectors) -> bytes:
        return _bytes(vector.astype(self._options["dtype"]).astype(np.float32))

    def _read(self, side: str, keys: KeyRange) -> Rows:
        with self._connected() as connection:
            where, values = _where(keys)
            return _rows(connection.execute(f"SELECT * FROM {side} WHERE {where} ORDER BY key", values).fetchall())

    def _delete(self, side: str, connection: sqlite3.Connection, keys: KeyRange) -> None:
        where, values = _where(keys)
        connection.execute(f"DELETE FROM {side} WHERE {where}", values)

    @staticmethod
    def _fact(connection: sqlite3.Connection, name: str) -> str | None:
        row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if self._path.with_suffix(".away").exists():
            raise StoreAway(f"fake:{self._path} does not answer; the password is hunter2.")
        with closing(sqlite3.connect(self._path)) as connection, connection:
            yield connection


def make_store(
    path: Path,
    embedding: Vectors,
    side_information: Vectors | None = None,
    *,
    notices: bool = True,
    dtype: str = "float32",
    metric: str | None = "l2",
) -> SqliteStore:
    """Make a store of rows `key-000`, …, (N, D) and (N, S) or None."""
    path.with_suffix(".json").write_text(json.dumps({"notices": notices, "dtype": dtype, "metric": metric}))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_TABLES)
    store = SqliteStore(path)
    sides = [None] * len(embedding) if side_information is None else list(side_information)
    store.put({key_of(place): (vector, sides[place]) for place, vector in enumerate(embedding)})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM changed")
    return store


def key_of(place: int) -> str:
    return f"key-{place:03}"


def url_of(path: Path) -> str:
    return f"fake://user:hunter2@{path}"


def open_fake(url: str, new: NewSide | None = None) -> SqliteStore:
    """Open the store of a URL, as `service.connectors.opening.open_store` does for real ones."""
    return SqliteStore(Path(url.partition("@")[2]), new)


def away(path: Path, *, back: bool = False) -> None:
    """Have the store not answer, or answer again."""
    flag = path.with_suffix(".away")
    if back:
        flag.unlink()
    else:
        flag.touch()


def _where(keys: KeyRange) -> tuple[str, list[str]]:
    parts = {"key > ?": keys.after, "key <= ?": keys.upto}
    given = {part: value for part, value in parts.items() if value is not None}
    return " AND ".join(given) or "true", list(given.values())


def _rows(found: Sequence[tuple[str, bytes, bytes | None]]) -> Rows:
    if not found:
        return Rows([], np.empty((0, 0), np.float32))
    keys, embeddings, sides = zip(*found, strict=True)
    side = None if sides[0] is None else np.stack([np.frombuffer(blob, "<f4") for blob in sides])
    return Rows(list(keys), np.stack([np.frombuffer(blob, "<f4") for blob in embeddings]), side)


def _bytes(vector: Vectors) -> bytes:
    return np.asarray(vector, "<f4").tobytes()
