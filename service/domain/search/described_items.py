"""What an answer says of the items that were found, and what is kept of it between queries.

A query reads its gallery's revision first. What is kept of a generation is then brought to that revision: the items
that changed since are forgotten. So an answer says what is stored when the query began, or later, as if every item were
read for it, and items that were shown before cost no row.
"""

import sys
import threading
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from sqlalchemy import Connection, text

from service.domain.gallery.galleries import Serving
from service.domain.gallery.generations import known_uncertainty
from service.index.protocol import Ids
from service.tables import embeddings_table
from service.vectors.rows import Origin

_MOST_CHANGES = 10_000  # more of them since the last query: everything that is kept of the generation is forgotten
_BYTES_OF_ONE = 500  # of a description without its texts, as measured
_Key = tuple[int, int]  # generation, item

_CHANGED = text("SELECT id FROM items WHERE gallery_id = :gallery_id AND revision > :revision")


@dataclass(frozen=True, slots=True)
class DescribedItem:
    """What an answer says of an item, whatever was asked.

    `hops` counts the transformations since the pixels, or the import; `uncertainty` is the squared error that h expects
    of the item's embedding, None where no h made it, or h does not say. `metadata` is a JSON object, written.
    """

    id: str
    origin: str
    hops: int
    uncertainty: float | None
    label: str | None
    metadata: str
    image_uri: str | None
    has_thumbnail: bool


class DescribedItems:
    """What this process keeps, at most so many bytes of it: what was asked for longest ago goes first. Safe to use from
    many threads; no lock is held while the database answers."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[_Key, DescribedItem] = LRUCache(max_bytes, getsizeof=_size)
        # Up to which revision of the gallery what is kept of a generation is right.
        self._revisions: dict[int, int] = {}

    def of(self, connection: Connection, serving: Serving, generation_id: int, ids: Ids) -> dict[int, DescribedItem]:
        """Return the descriptions of the items, by id; one that was deleted by now has none.

        Only those of the active generation are kept: of another one, its rows are read to know that it is still stored.
        """
        wanted: list[int] = np.unique(ids[ids >= 0]).tolist()
        if generation_id != serving.active_generation_id:
            return {id_: description for id_, description, _ in _read(connection, generation_id, wanted)}

        self._forget_changed(connection, serving)
        with self._lock:
            revision = self._revisions[generation_id]
            found = {id_: kept for id_ in wanted if (kept := self._kept.get((generation_id, id_))) is not None}
        missing = [id_ for id_ in wanted if id_ not in found]
        if missing:
            read = _read(connection, generation_id, missing)
            with self._lock:
                # Otherwise a change that came after these rows were read may have been looked for already.
                is_right = self._revisions.get(generation_id) == revision
                for id_, description, is_current in read:
                    found[id_] = description
                    if is_right and is_current and _size(description) <= self._kept.maxsize:
                        self._kept[generation_id, id_] = description
        return found

    def _forget_changed(self, connection: Connection, serving: Serving) -> None:
        """Bring what is kept of the active generation to the revision that the query read."""
        generation_id = serving.active_generation_id
        with self._lock:
            revision = self._revisions.setdefault(generation_id, serving.revision)
        if revision >= serving.revision:
            return

        is_much = serving.revision - revision > _MOST_CHANGES
        of_gallery = {"gallery_id": serving.gallery_id, "revision": revision}
        changed = [] if is_much else connection.execute(_CHANGED, of_gallery).scalars().all()
        with self._lock:
            every = [key for key in self._kept if is_much and key[0] == generation_id]
            for key in every or [(generation_id, id_) for id_ in changed]:
                self._kept.pop(key, None)
            self._revisions[generation_id] = max(self._revisions[generation_id], serving.revision)


def _size(description: DescribedItem) -> int:
    texts = (description.id, description.label, description.metadata, description.image_uri)
    return _BYTES_OF_ONE + sum(sys.getsizeof(each) for each in texts if each is not None)


def _read(connection: Connection, generation_id: int, ids: list[int]) -> list[tuple[int, DescribedItem, bool]]:
    """Return the live ones of the items, and whether each one's row is current: another one may yet be replaced without
    a new revision."""
    rows = connection.execute(
        text(
            f"SELECT i.id, i.external_id, e.origin, e.hops, {known_uncertainty('e')}, i.label, i.metadata::text,"
            " i.image_uri, i.thumbnail IS NOT NULL, e.revision = i.revision FROM items i"
            f" JOIN {embeddings_table(generation_id)} e ON e.item_id = i.id"
            " WHERE i.id = ANY(:ids) AND i.deleted_at IS NULL"
        ),
        {"ids": ids},
    )
    return [(row[0], DescribedItem(row[1], Origin(row[2]).label, *row[3:9]), row[9]) for row in rows.all()]
