"""Ingest of images: decode, encode under every stored generation's model version, write.

Encoding happens before the transaction; if an upgrade began or ended meanwhile, the images are encoded again for the
generations that are there now.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL.Image import Image

from service.db import Database
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import StoredGeneration, stored_generations
from service.domain.gallery.writes import GenerationsChanged, NewItem, check_items, write_items
from service.errors import Unavailable, Unprocessable
from service.index.replica import Replicas
from service.networks.encoders import Encoders
from service.networks.images import InvalidImage, thumbnail_jpeg
from service.settings import Settings
from service.vectors.rows import EmbeddingRows, NotStorable, Origin, to_storage

_WRITE_ATTEMPTS = 10


class NoImageAccepted(Unprocessable):
    """Every image of the request was rejected; nothing was stored."""


class UpgradesTooBusy(Unavailable):
    """Generations came and went each time that the vectors were ready."""


@dataclass(frozen=True)
class ImageUpload:
    """One file: its item, and how to read its bytes (they may be spooled on disk)."""

    item: NewItem
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ImageResult:
    """What became of one file."""

    id: str
    status: Literal["created", "replaced", "rejected"]
    error: str | None = None


@dataclass
class _Encoded:
    items: list[NewItem]
    rows: dict[int, EmbeddingRows]
    rejected: dict[int, str]


def ingest_images(
    database: Database,
    encoders: Encoders,
    replicas: Replicas,
    settings: Settings,
    gallery_name: str,
    uploads: Sequence[ImageUpload],
) -> list[ImageResult]:
    """Store the images that can be read, with one result per upload in order.

    Raises `InvalidItem` (422) before anything is encoded, and `NoImageAccepted` (422) when none can be stored.
    """
    check_items([upload.item for upload in uploads], settings.max_metadata_bytes)
    for _ in range(_WRITE_ATTEMPTS):
        with database.session_scope() as session:
            gallery = get_gallery(session, gallery_name)
            generations = stored_generations(session, gallery.id)
        encoded = _encode(encoders, settings, generations, uploads, gallery.thumbnails)
        if not encoded.items:
            raise NoImageAccepted("No image of the request could be stored.", _as_errors(uploads, encoded.rejected))
        try:
            with database.session_scope() as session:
                written = write_items(session, gallery.id, encoded.items, generations, encoded.rows)
        except GenerationsChanged:
            continue
        replicas.sync(gallery.id, written.revision)
        return _results(uploads, encoded.rejected, written.replaced)
    raise UpgradesTooBusy("Upgrades of this gallery kept changing while the images were encoded; try again.")


def _encode(
    encoders: Encoders,
    settings: Settings,
    generations: Sequence[StoredGeneration],
    uploads: Sequence[ImageUpload],
    thumbnails: bool,
) -> _Encoded:
    """Decode and encode in chunks, so that memory holds one chunk of decoded images at a time."""
    encoded = _Encoded([], {}, {})
    chunks: dict[int, list[EmbeddingRows]] = {generation.id: [] for generation in generations}
    for start in range(0, len(uploads), settings.encode_batch_items):
        images: list[Image] = []
        first = len(encoded.items)
        for position in range(start, min(start + settings.encode_batch_items, len(uploads))):
            try:
                image = encoders.images.decode(uploads[position].read())
            except InvalidImage as error:
                encoded.rejected[position] = error.message
                continue
            item = uploads[position].item
            encoded.items.append(replace(item, thumbnail=thumbnail_jpeg(image)) if thumbnails else item)
            images.append(image)
        if images:
            for generation in generations:
                chunks[generation.id].append(_rows(encoders, generation, images, first))
    encoded.rows = {id_: EmbeddingRows.concatenate(rows) for id_, rows in chunks.items() if rows}
    return encoded


def _rows(
    encoders: Encoders, generation: StoredGeneration, images: Sequence[Image], first_position: int
) -> EmbeddingRows:
    output = encoders.get(generation.version).encode(images)
    vector_format = generation.vector_format
    side_information = None
    try:
        embedding = to_storage(output.embedding, vector_format.dtype)
        if vector_format.side_information_dim is not None:
            assert output.side_information is not None
            side_information = to_storage(output.side_information, vector_format.dtype)
    except NotStorable as error:
        raise Unprocessable(
            f"Model version {generation.version.name!r} gives values that {vector_format.dtype} cannot hold: {error}"
        ) from error
    count = len(images)
    return EmbeddingRows(
        item_id=np.arange(first_position, first_position + count, dtype=np.int64),
        revision=np.zeros(count, np.int64),
        origin=np.full(count, Origin.ENCODED, np.int16),
        embedding=embedding,
        side_information=side_information,
    )


def _as_errors(uploads: Sequence[ImageUpload], rejected: dict[int, str]) -> list[dict[str, object]]:
    return [{"id": uploads[position].item.external_id, "detail": reason} for position, reason in rejected.items()]


def _results(uploads: Sequence[ImageUpload], rejected: dict[int, str], replaced: frozenset[str]) -> list[ImageResult]:
    results = []
    for position, upload in enumerate(uploads):
        name = upload.item.external_id
        if position in rejected:
            results.append(ImageResult(name, "rejected", rejected[position]))
        else:
            results.append(ImageResult(name, "replaced" if name in replaced else "created"))
    return results
