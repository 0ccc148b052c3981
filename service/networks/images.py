"""Images: reducing them to what networks read, within the operator's limits; and the door to the data sets that
trainings read.

A decoded image lives only in here: one at a time per thread, and within the process's budget of decoded bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.image_sets import ImageSet, LabelledImage, NoImages, OtherColumns, find_images, parquet_files
from models.images import ImageRejected, open_image, thumbnail_jpeg
from models.preprocessing import Preprocessing, preprocess
from service.errors import Unprocessable
from service.networks.decoded_bytes import DecodedBytes
from service.settings import Settings

__all__ = [
    "ImageDecoder",
    "ImageSet",
    "InvalidImage",
    "LabelledImage",
    "NoImages",
    "OtherColumns",
    "ReducedImage",
    "find_images",
    "parquet_files",
]

# What networks' inputs take at most until they are encoded: enough for a batch to be worth its while, and no more,
# since a network's own values take many times as much.
_INPUT_BYTES_AT_ONCE = 8 * 2**20


class InvalidImage(Unprocessable):
    """The bytes are not an image that can be used."""


@dataclass(frozen=True)
class ReducedImage:
    """What is kept of an image: a network's input (3, size, size) float32 for each preprocessing, and a thumbnail as
    JPEG where one was asked for."""

    inputs: dict[Preprocessing, NDArray[np.float32]]
    thumbnail: bytes | None = None

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.inputs.values())


class ImageDecoder:
    """Reduces image files of any accepted format that are within the operator's limits. Safe to use from many
    threads, which share one `budget` of decoded bytes."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_image_bytes
        self._max_pixels = settings.max_image_pixels
        self._items_at_once = settings.encode_batch_items
        self.budget = DecodedBytes(settings.decoded_bytes, settings.decoded_wait_seconds)

    def reduce(self, data: bytes, preprocessings: Iterable[Preprocessing], *, thumbnail: bool = False) -> ReducedImage:
        """Decode an image and reduce it at once. Raises `InvalidImage` (422) with a sentence, and `ImagesTooBusy`
        (429)."""
        if len(data) > self._max_bytes:
            raise InvalidImage(f"The file is larger than {self._max_bytes} bytes.")
        try:
            opened = open_image(data, self._max_pixels)
            if opened.decoded_bytes > self.budget.most:
                raise InvalidImage(
                    f"The image takes {opened.decoded_bytes} bytes while it is decoded; at most"
                    f" {self.budget.most} are granted (GALLERY_DECODED_BYTES)."
                )
            with self.budget.hold(opened.decoded_bytes):
                image = opened.decode()
                inputs = {each: preprocess(image, each) for each in set(preprocessings)}
                return ReducedImage(inputs, thumbnail_jpeg(image) if thumbnail else None)
        except ImageRejected as error:
            raise InvalidImage(str(error)) from error

    def blank(self, preprocessing: Preprocessing) -> ReducedImage:
        """Return an image that is black, to measure by."""
        return ReducedImage({preprocessing: np.zeros(preprocessing.shape, np.float32)})

    def is_full(self, images: int, each: ReducedImage) -> bool:
        """Return whether so many images, reduced by the same preprocessings, are to be encoded before more are read."""
        return images >= self._items_at_once or images * each.nbytes >= _INPUT_BYTES_AT_ONCE
