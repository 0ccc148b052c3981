"""What was sent of a folder: a SQLite file that outlives the process which uploads.

A row is written before a file is sent, without a digest, and again after the service has answered, with that of the
content. So after a process has died between the two, the file is sent once more, which changes nothing, and its item is
known of if the file is gone by then; no file is taken for sent that is not.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    changed_ns INTEGER NOT NULL,
    digest TEXT NOT NULL,
    reason TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gallery (incarnation TEXT NOT NULL);
"""
_BUSY_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """A file as it was when it was sent: `digest` is the SHA-256 of its bytes, empty until the service has answered;
    `reason` says why it was rejected."""

    id: str
    size: int
    changed_ns: int
    digest: str
    reason: str | None


class Ledger:
    """The rows of one folder and one gallery; to be used by the thread that opened it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def entries(self) -> dict[str, Entry]:
        """Return all rows by the ids of their items."""
        rows = self._connection.execute("SELECT id, size, changed_ns, digest, reason FROM files")
        return {row[0]: Entry(*row) for row in rows}

    def record(self, entries: Iterable[Entry]) -> None:
        """Write rows, durably, in the place of those with their ids."""
        rows = [(entry.id, entry.size, entry.changed_ns, entry.digest, entry.reason) for entry in entries]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def forget(self, ids: Iterable[str]) -> None:
        """Remove rows."""
        with self._connection:
            self._connection.executemany("DELETE FROM files WHERE id = ?", [(item_id,) for item_id in ids])

    def keep_to(self, incarnation: str) -> None:
        """Forget everything if the rows are of another gallery of that name, which was deleted since."""
        with self._connection:
            known = self._connection.execute("SELECT incarnation FROM gallery").fetchone()
            if known != (incarnation,):
                self._connection.execute("DELETE FROM files")
                self._connection.execute("DELETE FROM gallery")
                self._connection.execute("INSERT INTO gallery VALUES (?)", (incarnation,))


@contextmanager
def opened_ledger(path: Path, incarnation: str) -> Iterator[Ledger]:
    """Open or make a ledger for a gallery; `incarnation` tells it from a former one of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        connection.executescript(_SCHEMA)
        ledger = Ledger(connection)
        ledger.keep_to(incarnation)
        yield ledger


def ledger_path(url: str, gallery: str, folder: Path) -> Path:
    """Return where the ledger of an upload is kept unless its user says otherwise: below XDG_STATE_HOME."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(os.fsencode("\0".join((url, gallery, str(folder))))).hexdigest()[:32]
    return state / "gallery-upgrade" / f"{name}.sqlite"
