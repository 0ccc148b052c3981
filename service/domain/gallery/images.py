"""Ingest of images: decode, encode under every stored generation's model version, write.

Encoding happens before the transaction; if an upgrade began or ended meanwhile, the images are encoded again for the
generations that are there now.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from PIL.Image import Image

from service.domain.gallery.generations import StoredGeneration
from service.domain.gallery.new_items import NewItem, check_items
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, new_rows
from service.errors import Unavailable, Unprocessable
from service.networks.encoders import Encoders
from service.networks.images import InvalidImage, thumbnail_jpeg
from service.vectors.rows import EmbeddingRows, NotStorable, Origin, to_storage


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


@dataclass(frozen=True)
class _Encoded(NewRows):
    """The images that can be read, and by position why others cannot."""

    rejected: dict[int, str] = field(default_factory=dict)


def ingest_images(writer: GalleryWriter, gallery_name: str, uploads: Sequence[ImageUpload]) -> list[ImageResult]:
    """Store the images that can be read, with one result per upload in order.

    Raises `InvalidItem` (422) before anything is encoded, and `NoImageAccepted` (422) when none can be stored.
    """
    check_items([upload.item for upload in uploads], writer.settings.max_metadata_bytes)
    busy = UpgradesTooBusy("Upgrades of this gallery kept changing while the images were encoded; try again.")
    encoded, written = writer.write(gallery_name, partial(_encode, writer, uploads), busy)
    return _results(uploads, encoded.rejected, written.replaced)


def _encode(writer: GalleryWriter, uploads: Sequence[ImageUpload], target: Target) -> _Encoded:
    """Decode and encode in chunks, so that memory holds one chunk of decoded images at a time."""
    items: list[NewItem] = []
    rejected: dict[int, str] = {}
    chunks: dict[int, list[EmbeddingRows]] = {generation.id: [] for generation in target.generations}
    chunk_items = writer.settings.encode_batch_items
    for start in range(0, len(uploads), chunk_items):
        images: list[Image] = []
        first = len(items)

        for position, upload in enumerate(uploads[start : start + chunk_items], start):
            try:
                image = writer.encoders.images.decode(upload.read())
            except InvalidImage as error:
                rejected[position] = error.message
                continue
            thumbnail = thumbnail_jpeg(image) if target.gallery.thumbnails else None
            items.append(replace(upload.item, thumbnail=thumbnail))
            images.append(image)

        if images:
            for generation in target.generations:
                chunks[generation.id].append(_rows(writer.encoders, generation, images, first))

    if not items:
        errors: list[dict[str, object]] = [
            {"id": uploads[position].item.external_id, "detail": reason} for position, reason in rejected.items()
        ]
        raise NoImageAccepted("No image of the request could be stored.", errors)
    return _Encoded(items, {id_: EmbeddingRows.concatenate(rows) for id_, rows in chunks.items()}, rejected=rejected)


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
    return new_rows(Origin.ENCODED, embedding, side_information, first_position)


def _results(uploads: Sequence[ImageUpload], rejected: dict[int, str], replaced: frozenset[str]) -> list[ImageResult]:
    results = []
    for position, upload in enumerate(uploads):
        name = upload.item.external_id
        if position in rejected:
            results.append(ImageResult(name, "rejected", rejected[position]))
        else:
            results.append(ImageResult(name, "replaced" if name in replaced else "created"))
    return results
