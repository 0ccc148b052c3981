"""From images to rows: reading them, finding out which are not their items', and encoding the others.

An image that cannot be read, or that is another one than its item's, is named with the reason, and costs no other item.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field, replace

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.gallery.better_rows import made_by_h
from service.domain.gallery.generations import StoredGeneration, stored_generations
from service.domain.gallery.images import encoded_rows
from service.domain.gallery.same_image import ANOTHER_IMAGE, StoredRow, stored_rows
from service.domain.generation_stage import GenerationStage
from service.errors import Unprocessable
from service.image_sources.errors import ImageAway, ImageNotRead
from service.image_sources.source import ImageSource
from service.networks.encoders import Encoders
from service.networks.images import ReducedImage
from service.tables import BackfillSource
from service.vectors.rows import EmbeddingRows, Origin

_LOOK_SECONDS = 0.25
_COLUMNS: dict[BackfillSource, str] = {"uri": "i.image_uri", "thumbnails": "i.thumbnail", "client": "NULL"}


@dataclass(frozen=True)
class WantedItem:
    """An item whose row h made, as it is now; `image` is its URI, or its thumbnail's bytes, by the source."""

    item_id: int
    external_id: str
    revision: int
    image: str | bytes | None


# Returns the bytes of an item's image, or raises `ImageNotRead`.
ReadImage = Callable[[WantedItem], bytes]


@dataclass(frozen=True)
class Reader:
    """Reads images, several at once, until nobody wants them any more: then `check_wanted` raises."""

    read: ReadImage
    at_once: int
    check_wanted: Callable[[], None]

    def readings(self, items: Sequence[WantedItem]) -> Iterator[tuple[WantedItem, "Future[bytes]"]]:
        """Give each item with its reading, which has ended. One that hangs is left to its own time limit where the work
        is not wanted any more."""
        threads = ThreadPoolExecutor(self.at_once)
        try:
            for start in range(0, len(items), self.at_once):
                group = items[start : start + self.at_once]
                running = [threads.submit(copy_context().run, self.read, item) for item in group]
                while wait(running, _LOOK_SECONDS).not_done:
                    self.check_wanted()
                yield from zip(group, running, strict=True)
                self.check_wanted()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Target:
    """The generation that gets rows, and what is known of the items' images: the rows of another generation, under its
    model version, None where there is none that could tell."""

    generation: StoredGeneration
    wanted: Sequence[WantedItem]
    known: StoredGeneration | None
    known_rows: dict[str, StoredRow]


@dataclass
class Reencoded:
    """Rows with the revisions that their items had, and by item id why others have none: `refused` for good, or `away`,
    which may be read later."""

    rows: list[EmbeddingRows] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    away: dict[int, str] = field(default_factory=dict)


def reader_of(source: ImageSource) -> ReadImage:
    """Return what reads an item's image from where its row says."""

    def read(item: WantedItem) -> bytes:
        if isinstance(item.image, bytes):
            return item.image
        if item.image is None:
            raise ImageNotRead("The item has no image_uri, or no thumbnail, any more.")
        return source.read(item.image)

    return read


def wanted_items(
    session: Session, generation: StoredGeneration, source: BackfillSource, item_ids: Sequence[int]
) -> list[WantedItem]:
    """Return those of the items that are live and whose current row h made, by id."""
    query = text(
        f"SELECT i.id, i.external_id, i.revision, {_COLUMNS[source]} AS image FROM items i"
        f" JOIN {generation.table} e ON {made_by_h('e')} WHERE i.gallery_id = :gallery_id AND i.id = ANY(:ids)"
        " ORDER BY i.id"
    )
    rows = session.execute(query, {"gallery_id": generation.gallery_id, "ids": list(item_ids)})
    return [WantedItem(row.id, row.external_id, row.revision, row.image) for row in rows]


def target_of(
    session: Session, generation: StoredGeneration, source: BackfillSource, item_ids: Sequence[int]
) -> Target:
    """Return what is to be encoded of these items."""
    wanted = wanted_items(session, generation, source, item_ids)
    known = who_knows(session, generation, source)
    rows = {} if known is None else stored_rows(session, known, [item.external_id for item in wanted])
    return Target(generation, wanted, known, rows)


def who_knows(session: Session, generation: StoredGeneration, source: BackfillSource) -> StoredGeneration | None:
    """Return the generation whose rows tell whether an image is its item's: the newest other one that is complete, for
    a candidate the active one, for that the previous.

    None where there is none whose version has networks, and for thumbnails: the service made them itself, and they are
    far from their images.
    """
    others = [] if source == "thumbnails" else stored_generations(session, generation.gallery_id)
    complete = [
        other
        for other in others
        if other.state is GenerationStage.COMPLETE and other.id != generation.id and other.version.has_networks
    ]
    return complete[-1] if complete else None


def reencode(encoders: Encoders, target: Target, reader: Reader) -> Reencoded:
    """Read and encode the wanted items' images. Raises what the reader's `check_wanted` does."""
    found = Reencoded()
    for group in _reduced(encoders, target, reader, found):
        try:
            _encode(encoders, target, group, found)
        except Unprocessable:  # of one image; which one, only each by itself tells
            for pair in group:
                try:
                    _encode(encoders, target, [pair], found)
                except Unprocessable as error:
                    found.refused[pair[0].item_id] = error.message
    return found


def _reduced(
    encoders: Encoders, target: Target, reader: Reader, found: Reencoded
) -> Iterator[list[tuple[WantedItem, ReducedImage]]]:
    """Give images, reduced to what the target's versions read, a few at a time."""
    versions = [target.generation.version, *([] if target.known is None else [target.known.version])]
    preprocessings = [encoders.get(version).preprocessing for version in versions]
    group: list[tuple[WantedItem, ReducedImage]] = []
    for item, reading in reader.readings(target.wanted):
        try:
            image = encoders.images.reduce(reading.result(), preprocessings)
        except ImageAway as error:
            found.away[item.item_id] = error.message
            continue
        except Unprocessable as error:  # it cannot be read, or it is no image
            found.refused[item.item_id] = error.message
            continue
        group.append((item, image))
        if encoders.images.is_full(len(group), image):
            yield group
            group = []
    if group:
        yield group


def _encode(
    encoders: Encoders, target: Target, group: Sequence[tuple[WantedItem, ReducedImage]], found: Reencoded
) -> None:
    """Encode images of items, but those that are known to be others'. Raises `Unprocessable` for a group."""
    others = _of_others(encoders, target, group)
    found.refused.update(dict.fromkeys(others, ANOTHER_IMAGE))
    kept = [(item, image) for item, image in group if item.item_id not in others]
    if not kept:
        return
    encoder = encoders.get(target.generation.version)
    rows = encoded_rows(encoder, target.generation, [image for _, image in kept], Origin.BACKFILLED)
    ids, revisions = zip(*((item.item_id, item.revision) for item, _ in kept), strict=True)
    found.rows.append(replace(rows, item_id=np.array(ids, np.int64), revision=np.array(revisions, np.int64)))


def _of_others(encoders: Encoders, target: Target, group: Sequence[tuple[WantedItem, ReducedImage]]) -> set[int]:
    """Return the items of whose images it is known that they are others'."""
    rows = target.known_rows  # one of another revision was written meanwhile, and tells nothing
    known = [(item, image) for item, image in group if _revision_of(rows.get(item.external_id)) == item.revision]
    if target.known is None or not known:
        return set()
    embeddings = encoders.get(target.known.version).encode_embedding_apart([image for _, image in known])
    return {
        item.item_id
        for (item, _), embedding in zip(known, embeddings, strict=True)
        if rows[item.external_id].is_of_another_image(embedding)
    }


def _revision_of(row: StoredRow | None) -> int | None:
    return None if row is None else row.revision
