"""What an answer says of the items that were found, and what is kept of it between queries.

A query reads its gallery's revision first. What is kept of a generation is then brought to that revision, or to the one
that its index has followed to: the items that changed since are forgotten. So an answer says what is stored when the
query began, or later, as if every item were read for it, and items that were shown before cost no row.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from cachetools import LRUCache
from sqlalchemy import text

from service.db import Database
from service.domain.gallery.current_rows import is_current
from service.domain.gallery.generations import GenerationKey, known_uncertainty
from service.index.protocol import Ids
from service.tables import embeddings_table
from service.vectors.rows import Origin

_MOST_CHANGES = 10_000  # more of them since the last query: everything that is kept of the generation is forgotten
_AT_ONCE = 1_000  # items that are looked up while the lock is held
_BYTES_OF_ONE = 500  # of a described item without its texts, as measured
_Key = tuple[int, int]  # generation, item
_T = TypeVar("_T")

_CHANGED = text("SELECT id FROM items WHERE gallery_id = :gallery_id AND revision > :revision")


@dataclass(frozen=True, slots=True)
class DescribedItem:
    """What an answer says of an item, whatever was asked.

    `hops` counts the transformations since the pixels, or the import; `uncertainty` is the squared error that h expects
    of the item's embedding, None where no h made it, or h does not say. `metadata` is a JSON object, in UTF-8.
    """

    id: str
    origin: str
    hops: int
    uncertainty: float | None
    label: str | None
    metadata: bytes
    image_uri: str | None
    has_thumbnail: bool


class DescribedItems:
    """What this process keeps of active generations, at most so many bytes of it: what was asked for longest ago goes
    first. Safe to use from many threads; no lock is held while the database answers."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[_Key, DescribedItem] = LRUCache(max_bytes, getsizeof=_size)
        # Up to which revision of the gallery what is kept of a generation is right.
        self._revisions: dict[int, int] = {}

    def of(
        self, database: Database, generation: GenerationKey, ids: Ids, revision: int | None
    ) -> dict[int, DescribedItem]:
        """Return the items by id, as they are at the gallery's revision or later; one that is deleted by then is left
        out.

        Without a revision nothing is kept, and all rows are read: of a generation that is not active, to know that it
        is still stored.
        """
        generation_id = generation.generation_id
        wanted: list[int] = np.unique(ids[ids >= 0]).tolist()
        if revision is None:
            return {id_: item for id_, item, _ in _read(database, generation_id, wanted)}

        right_until = self._forget_changed(database, generation, revision)
        found: dict[int, DescribedItem] = {}
        for part in _parts(wanted):
            with self._lock:
                for id_ in part:
                    kept = self._kept.get((generation_id, id_))
                    if kept is not None:
                        found[id_] = kept
        missing = [id_ for id_ in wanted if id_ not in found]
        if missing:
            read = _read(database, generation_id, missing)
            found.update((id_, item) for id_, item, _ in read)
            self._keep(generation_id, right_until, [(id_, item) for id_, item, is_current in read if is_current])
        return found

    def _forget_changed(self, database: Database, generation: GenerationKey, revision: int) -> int:
        """Bring what is kept of a generation to a revision, and return the one that it is right until."""
        generation_id = generation.generation_id
        with self._lock:
            known = self._revisions.setdefault(generation_id, revision)
        if known >= revision:
            return known

        is_much = revision - known > _MOST_CHANGES
        changed = [] if is_much else _changed(database, generation.gallery_id, known)
        with self._lock:
            gone = [key for key in self._kept if key[0] == generation_id] if is_much else _keys(generation_id, changed)
            for key in gone:
                self._kept.pop(key, None)
            self._revisions[generation_id] = max(self._revisions[generation_id], revision)
            return self._revisions[generation_id]

    def _keep(self, generation_id: int, right_until: int, items: Sequence[tuple[int, DescribedItem]]) -> None:
        """Keep what was read after what is kept was right until a revision."""
        for part in _parts(items):
            with self._lock:
                if self._revisions[generation_id] != right_until:
                    return  # a change that came after the rows were read may have been looked for already
                for id_, item in part:
                    if _size(item) <= self._kept.maxsize:
                        self._kept[generation_id, id_] = item


def _keys(generation_id: int, ids: Sequence[int]) -> list[_Key]:
    return [(generation_id, id_) for id_ in ids]


def _parts(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


def _size(item: DescribedItem) -> int:
    """Return the bytes that an item takes; a text keeps itself in UTF-8 too, once it was written."""
    texts = [each for each in (item.id, item.label, item.image_uri) if each is not None]
    written = sum(len(each.encode()) for each in texts if not each.isascii())
    return _BYTES_OF_ONE + len(item.metadata) + sum(map(sys.getsizeof, texts)) + written


def _changed(database: Database, gallery_id: int, revision: int) -> Sequence[int]:
    """Return the items that changed since the revision."""
    with database.reading() as connection:
        return connection.execute(_CHANGED, {"gallery_id": gallery_id, "revision": revision}).scalars().all()


def _read(database: Database, generation_id: int, ids: list[int]) -> list[tuple[int, DescribedItem, bool]]:
    """Return the live ones of the items, and whether each one's row is current: another one may yet be replaced without
    a new revision."""
    query = text(
        f"SELECT i.id, i.external_id, e.origin, e.hops, {known_uncertainty('e')}, i.label,"
        f" convert_to(i.metadata::text, 'UTF8'), i.image_uri, i.thumbnail IS NOT NULL, {is_current('e')}"
        f" FROM items i JOIN {embeddings_table(generation_id)} e ON e.item_id = i.id"
        " WHERE i.id = ANY(:ids) AND i.deleted_at IS NULL"
    )
    with database.reading() as connection:
        rows = connection.execute(query, {"ids": ids}).all()
    return [(row[0], DescribedItem(row[1], Origin(row[2]).label, *row[3:9]), row[9]) for row in rows]
