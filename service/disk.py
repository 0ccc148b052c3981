"""Room on the disk: what is stored stops before it is full, because a PostgreSQL without room for its log dies.

The disk is that of the data folder, and it counts where a blob store in a folder or a database that is reached by a
socket is on it. Servers elsewhere are their operator's to watch.
"""

import shutil
from pathlib import Path

from sqlalchemy import make_url

from service.errors import GalleryError
from service.settings import Settings


class NoRoom(GalleryError):
    """The disk has too little room for what would be stored."""

    status_code = 507


def holds_blobs(settings: Settings) -> bool:
    """Whether the blob store is on the data folder's disk."""
    return settings.blob_location.startswith("file:")


def holds_database(settings: Settings) -> bool:
    """Whether the database is on the data folder's disk."""
    host = make_url(settings.database_url).query.get("host", "") if settings.database_url else "/"
    return str(host).startswith("/")


def free_bytes(settings: Settings) -> int:
    """Return how many bytes are free on the data folder's disk."""
    return shutil.disk_usage(_existing(settings.data)).free


def shortage(settings: Settings) -> str | None:
    """Return a sentence when less than the reserve is free, None when there is room."""
    if not (holds_blobs(settings) or holds_database(settings)):
        return None
    free = free_bytes(settings)
    if free >= settings.disk_reserve_bytes:
        return None
    return (
        f"The disk of {settings.data} has {in_words(free)} free, less than the reserve of"
        f" {in_words(settings.disk_reserve_bytes)}: nothing is stored until there is room again. Queries go on."
    )


def in_words(count: int) -> str:
    """Return a number of bytes in MiB, or in GiB if it is one or more."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.resolve().parent)
