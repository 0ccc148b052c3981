"""How many bytes a generation takes, and whether the disk has them."""

from dataclasses import dataclass

from service.disk import NoRoom, free_bytes, holds_blobs, holds_database, in_words
from service.settings import Settings
from service.vectors.rows import VectorFormat

# PostgreSQL's own share of a row of a generation's table: tuple header, line pointer, the columns before the
# vectors, the vectors' headers, and the entry in the primary key.
_ROW_OVERHEAD_BYTES = 24 + 4 + 24 + 16 + 20
# A HNSW index keeps float16 codes and 64 links of 4 bytes; a flat one, of at most some ten thousand rows, float32.
_INDEX_LINK_BYTES = 64 * 4 + 8
# Between two checkpoints PostgreSQL keeps its log of what was written: the embedded one's `max_wal_size`.
_MOST_LOG_BYTES = 2 * 2**30


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
    """Raise `NoRoom` (507) when the data folder's disk would have less than the reserve left: after the index, the
    rows, and PostgreSQL's log of them."""
    total = needed.index if holds_blobs(settings) else 0
    if holds_database(settings):
        total += needed.database + min(needed.database, _MOST_LOG_BYTES)
    free = free_bytes(settings)
    if total + settings.disk_reserve_bytes > free:
        raise NoRoom(
            f"The next generation takes about {in_words(total)}, the reserve {in_words(settings.disk_reserve_bytes)},"
            f" and the disk of {settings.data} has {in_words(free)} free; make room, or put the database elsewhere."
        )
