"""Images: decoding them within the operator's limits, and the door to the data sets that trainings read."""

from PIL.Image import Image

from models.image_sets import ImageSet, LabelledImage, NoImages, OtherColumns, find_images, parquet_files
from models.images import ImageRejected, decode_image, thumbnail_jpeg
from service.errors import Unprocessable
from service.settings import Settings

__all__ = [
    "ImageDecoder",
    "ImageSet",
    "InvalidImage",
    "LabelledImage",
    "NoImages",
    "OtherColumns",
    "find_images",
    "parquet_files",
    "thumbnail_jpeg",
]


class InvalidImage(Unprocessable):
    """The bytes are not an image that can be used."""


class ImageDecoder:
    """Decodes image files of any accepted format that are within the operator's limits."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_image_bytes
        self._max_pixels = settings.max_image_pixels

    def decode(self, data: bytes) -> Image:
        """Return RGB pixels. Raises `InvalidImage` (422) with a sentence."""
        if len(data) > self._max_bytes:
            raise InvalidImage(f"The file is larger than {self._max_bytes} bytes.")
        try:
            return decode_image(data, self._max_pixels)
        except ImageRejected as error:
            raise InvalidImage(str(error)) from error
