"""Ingest of images: reduce each to what networks read, encode under every stored generation's model version, write.

The active generation's version encodes them, or none is taken. Another generation whose version has no networks gets no
rows, as from an import: catch-up fills the next one, and a rollback to the previous one asks.
Encoding happens before the transaction; if an upgrade began or ended meanwhile, the images are encoded again for the
generations that are there now.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import Literal

from sqlalchemy.orm import Session

from service.domain.gallery.generations import StoredGeneration
from service.domain.gallery.new_items import NewItem, item_faults, refuse_repeated_ids, shown_id
from service.domain.gallery.probe_images import MAX_BYTES, Originals
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, Written, count_ingested, new_rows
from service.errors import Unavailable, Unprocessable
from service.image_sources.errors import ImageNotRead
from service.metrics import INGESTED
from service.networks.encoders import Encoded, EncodingFailed, VersionEncoder, check_encodes
from service.networks.images import InvalidImage, ReducedImage
from service.vectors.rows import EmbeddingRows, Origin, Vectors
from service.vectors.storing import NotStorable, to_storage

_THUMBNAIL_BYTES_IN_MEMORY = 8 * 2**20


class NoImageAccepted(Unprocessable):
    """Every image of the request was rejected; nothing was stored."""


class UpgradesTooBusy(Unavailable):
    """Generations came and went each time that the vectors were ready."""


@dataclass(frozen=True)
class ImageUpload:
    """One image: its item, and how to read its bytes, which may be on disk or far away.

    `read` raises `ImageNotRead` where that rejects this image alone.
    """

    item: NewItem
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ImageResult:
    """What became of one file."""

    id: str
    status: Literal["created", "replaced", "rejected"]
    error: str | None = None


@dataclass(frozen=True)
class _Read:
    """An image that could be read: its position among the uploads, what is kept of it, and the bytes of its file."""

    position: int
    image: ReducedImage
    file_bytes: int


class _Thumbnails:
    """Thumbnails between an image and the database, in a file if they are many: a request may bring ten thousand."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_THUMBNAIL_BYTES_IN_MEMORY)  # noqa: SIM115 - it goes with this

    def keep(self, thumbnail: bytes | None) -> Callable[[], bytes] | None:
        """Return how to read it."""
        if thumbnail is None:
            return None
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(thumbnail)
        return partial(self._read, start, len(thumbnail))

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


@dataclass(frozen=True)
class _Encoded(NewRows):
    """The images that can be read, and by position why others cannot."""

    rejected: dict[int, str] = field(default_factory=dict)


def ingest_images(writer: GalleryWriter, gallery_name: str, uploads: Sequence[ImageUpload]) -> list[ImageResult]:
    """Store the images that can be read, with one result per upload in order.

    One whose item or vectors cannot be stored is rejected alone. Raises `InvalidItem` (422) for an id that occurs
    twice, before anything is encoded, `NoImageAccepted` (422) when none can be stored, and `VersionWithoutNetworks`
    (409) where nothing encodes them.
    """
    items = [upload.item for upload in uploads]
    refuse_repeated_ids(items)
    invalid = dict(item_faults(items, writer.settings.max_metadata_bytes))
    busy = UpgradesTooBusy("Upgrades of this gallery kept changing while the images were encoded; try again.")
    encoded, written = writer.write(gallery_name, partial(_encode_some, writer, uploads, invalid), busy)
    count_ingested(written, len(encoded.rejected))
    return _results(uploads, encoded.rejected, written.replaced)


def ingest_images_and(
    record: Callable[[Session, list[ImageResult]], None],
    writer: GalleryWriter,
    gallery_name: str,
    uploads: Sequence[ImageUpload],
) -> None:
    """Store the images that can be read, if any, and call `record(session, results)` last in the same transaction.

    The items were checked before. Raises `UpgradesTooBusy` (503), and what `record` raises, which undoes the write.
    """
    busy = UpgradesTooBusy("Upgrades of this gallery kept changing while the images were encoded.")

    def record_results(session: Session, encoded: _Encoded, written: Written) -> None:
        record(session, _results(uploads, encoded.rejected, written.replaced))

    encoded, written = writer.write(gallery_name, partial(_encode, writer, uploads, {}), busy, record_results)
    count_ingested(written, len(encoded.rejected))


def _encode_some(
    writer: GalleryWriter, uploads: Sequence[ImageUpload], invalid: dict[int, str], target: Target
) -> _Encoded:
    """Encode, or raise `NoImageAccepted` where nothing is left to store."""
    encoded = _encode(writer, uploads, invalid, target)
    if not encoded.items:
        INGESTED.labels("image", "rejected").inc(len(encoded.rejected))
        errors: list[dict[str, object]] = [
            {"id": shown_id(uploads[position].item.external_id), "detail": reason}
            for position, reason in sorted(encoded.rejected.items())
        ]
        raise NoImageAccepted("No image of the request could be stored.", errors)
    return encoded


def _encode(writer: GalleryWriter, uploads: Sequence[ImageUpload], invalid: dict[int, str], target: Target) -> _Encoded:
    """Reduce and encode a few images at a time: memory holds one decoded image, the inputs of one batch, and of each
    image its vectors. `invalid` are the positions of items that cannot be stored, with the reasons. Raises
    `VersionWithoutNetworks` (409)."""
    generations = _encoding_generations(target)
    encoders = {generation.id: writer.encoders.get(generation.version) for generation in generations}
    items: list[NewItem] = []
    rejected = dict(invalid)
    originals: Originals = {}
    thumbnails = _Thumbnails()
    chunks: dict[int, list[EmbeddingRows]] = {generation.id: [] for generation in generations}
    for few in _few_at_a_time(writer, uploads, target, list(encoders.values()), rejected):
        for images, encoded in _encode_chunk(encoders, generations, few, rejected):
            faults = _faults(encoded, [read.position for read in images])
            rejected |= faults
            kept = [row for row, read in enumerate(images) if read.position not in faults]
            for generation, output in encoded if kept else ():
                rows = _rows(generation, output, kept, Origin.ENCODED)
                rows.item_id += len(items)
                chunks[generation.id].append(rows)
            for read in (images[row] for row in kept):
                upload = uploads[read.position]
                if read.file_bytes <= MAX_BYTES:
                    originals[len(items)] = upload.read
                items.append(replace(upload.item, thumbnail=thumbnails.keep(read.image.thumbnail)))

    by_generation = {id_: EmbeddingRows.concatenate(rows) for id_, rows in chunks.items()} if items else {}
    return _Encoded(items, by_generation, originals=originals, rejected=rejected)


def _encoding_generations(target: Target) -> list[StoredGeneration]:
    """Return the generations whose versions encode images. Raises `VersionWithoutNetworks` (409) where the active one's
    does not."""
    for generation in target.generations:
        if generation.id == target.gallery.active_generation_id:
            check_encodes(generation.version)
    return [generation for generation in target.generations if generation.version.has_networks]


def _few_at_a_time(
    writer: GalleryWriter,
    uploads: Sequence[ImageUpload],
    target: Target,
    encoders: Sequence[VersionEncoder],
    rejected: dict[int, str],
) -> Iterator[list[_Read]]:
    """Give the images that can be read, reduced; to `rejected`, why others cannot. Those that have a reason already are
    not read."""
    decoder, thumbnail = writer.encoders.images, target.gallery.thumbnails
    preprocessings = [encoder.preprocessing for encoder in encoders]
    images: list[_Read] = []
    for position, upload in enumerate(uploads):
        if position in rejected:
            continue
        try:
            data = upload.read()
            image = decoder.reduce(data, preprocessings, thumbnail=thumbnail)
        except (InvalidImage, ImageNotRead) as error:
            rejected[position] = error.message
            continue
        images.append(_Read(position, image, len(data)))
        if decoder.is_full(len(images), image):
            yield images
            images = []
    if images:
        yield images


def _encode_chunk(
    encoders: Mapping[int, VersionEncoder],
    generations: Sequence[StoredGeneration],
    images: Sequence[_Read],
    rejected: dict[int, str],
) -> Iterator[tuple[Sequence[_Read], list[tuple[StoredGeneration, Encoded]]]]:
    """Give the images that no network fails on, in order and in as few parts as it takes, with what each generation's
    version makes of them; the others, which are found by halving, are added to `rejected`."""
    reduced = [read.image for read in images]
    try:
        encoded = [(generation, encoders[generation.id].encode_each(reduced)) for generation in generations]
    except EncodingFailed as error:
        if len(images) == 1:
            rejected[images[0].position] = error.message
            return
        half = len(images) // 2
        yield from _encode_chunk(encoders, generations, images[:half], rejected)
        yield from _encode_chunk(encoders, generations, images[half:], rejected)
    else:
        yield images, encoded


def _faults(encoded: Sequence[tuple[StoredGeneration, Encoded]], positions: Sequence[int]) -> dict[int, str]:
    """Return why images cannot be stored, by their positions: for one generation is enough."""
    faults: dict[int, str] = {}
    for generation, output in encoded:
        for what, vectors, needs_direction in _vectors_of(generation, output):
            try:
                to_storage(vectors, generation.vector_format.dtype, needs_direction=needs_direction)
            except NotStorable as error:
                for row in error.rows.tolist():
                    reason = f"Model version {generation.version.name!r}: the {what} {error.reason_of(row)}."
                    faults.setdefault(positions[row], reason)
    return faults


def encoded_rows(
    encoder: VersionEncoder, generation: StoredGeneration, images: Sequence[ReducedImage], origin: Origin
) -> EmbeddingRows:
    """Return what the generation's version makes of images, as `new_rows`. Raises `EncodingFailed`, and `Unprocessable`
    for values that its rows cannot hold."""
    output = encoder.encode_each(images)
    faults = _faults([(generation, output)], range(len(images)))
    if faults:
        raise Unprocessable(next(iter(faults.values())))
    return _rows(generation, output, list(range(len(images))), origin)


def _vectors_of(generation: StoredGeneration, output: Encoded) -> Iterator[tuple[str, Vectors, bool]]:
    """Give what is stored of images, (N, D) and perhaps (N, S): its name, values, and whether it needs a direction."""
    yield "embedding", output.embedding, generation.vector_format.needs_direction
    if generation.vector_format.side_information_dim is not None:
        assert output.side_information is not None
        yield "side-information", output.side_information, False


def _rows(generation: StoredGeneration, output: Encoded, kept: list[int], origin: Origin) -> EmbeddingRows:
    """Return the rows of those images that are kept, as `new_rows`."""
    dtype = generation.vector_format.dtype
    stored = [to_storage(vectors[kept], dtype) for _, vectors, _ in _vectors_of(generation, output)]
    return new_rows(origin, stored[0], stored[1] if len(stored) > 1 else None)


def _results(uploads: Sequence[ImageUpload], rejected: dict[int, str], replaced: frozenset[str]) -> list[ImageResult]:
    results = []
    for position, upload in enumerate(uploads):
        name = upload.item.external_id
        if position in rejected:
            results.append(ImageResult(shown_id(name), "rejected", rejected[position]))
        else:
            results.append(ImageResult(name, "replaced" if name in replaced else "created"))
    return results
