"""Hearing from PostgreSQL that a gallery changed, so that replicas need not wait for their next round.

The gallery's row and its generations' rows notify by triggers, when their transaction commits. What is missed while the
connection is away, or where a pooler does not pass notifications on, the replicas' rounds find.
"""

import select
import socket
import threading
from collections.abc import Callable

import psycopg
from sqlalchemy import URL

from service import logs

events = logs.Events(__name__)

CHANNEL = "gallery_changed"
_PAUSE_SECONDS = 1.0


class GalleryNews:
    """A thread with a connection of its own that calls `note(gallery_id, revision)` of each change; the revision is
    None where generations changed."""

    def __init__(self, database_url: URL, note: Callable[[int, int | None], None]) -> None:
        self._url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._note = note
        self._stopping = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="gallery-news", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._waker.close()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._woken.close()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hear()
            except psycopg.Error as error:
                events.warning("gallery_news.away", reason=f"{type(error).__name__}: {error}")
                self._stopping.wait(_PAUSE_SECONDS)

    def _hear(self) -> None:
        with psycopg.connect(self._url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while not self._stopping.is_set():
                for notification in connection.notifies(timeout=0):
                    self._note(*_read(notification.payload))
                select.select([connection.fileno(), self._woken.fileno()], [], [])


def _read(payload: str) -> tuple[int, int | None]:
    """Return what the triggers say: a gallery's id, and its revision if only that changed."""
    gallery_id, _, revision = payload.partition(" ")
    return int(gallery_id), int(revision) if revision else None
