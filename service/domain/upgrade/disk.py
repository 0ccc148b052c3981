"""How many bytes a generation takes, and whether the disk has them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from service.errors import GalleryError
from service.settings import Settings
from service.vectors.rows import VectorFormat

# PostgreSQL's own share of a row of a generation's table: tuple header, line pointer, the columns before the
# vectors, the vectors' headers, and the entry in the primary key.
_ROW_OVERHEAD_BYTES = 24 + 4 + 24 + 16 + 20
# A HNSW index keeps float16 codes and 64 links of 4 bytes; a flat one, of at most some ten thousand rows, float32.
_INDEX_LINK_BYTES = 64 * 4 + 8


class NoRoom(GalleryError):
    """The disk is too small for another generation."""

    status_code = 507


@dataclass(frozen=True)
class Bytes:
    """What a generation adds: rows to the database, an index file to the blob store."""

    database: int
    index: int


def generation_bytes(vector_format: VectorFormat, items: int) -> Bytes:
    """Return about how many bytes a generation of `items` rows takes."""
    numbers = vector_format.embedding_dim + (vector_format.side_information_dim or 0)
    row = _ROW_OVERHEAD_BYTES + numbers * (2 if vector_format.dtype == "float16" else 4)
    return Bytes(items * row, items * (2 * vector_format.embedding_dim + _INDEX_LINK_BYTES))


def check_room(settings: Settings, needed: Bytes) -> None:
    """Raise `NoRoom` (507) when the data folder's disk has less than what is needed of it.

    It counts a blob store in a folder, and a database that is reached by a socket: both are taken to be on that disk.
    Servers elsewhere are their operator's to watch.
    """
    total = 0
    if settings.blob_location.startswith("file:"):
        total += needed.index
    host = make_url(settings.database_url).query.get("host", "") if settings.database_url else "/"
    if str(host).startswith("/"):
        total += needed.database
    free = shutil.disk_usage(_existing(settings.data)).free
    if total > free:
        raise NoRoom(
            f"The next generation takes about {total / 2**30:.1f} GiB and the disk of {settings.data} has"
            f" {free / 2**30:.1f} GiB; make room, or put the database elsewhere."
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.resolve().parent)
