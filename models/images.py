"""From a file's bytes to an image as it is shown, or a sentence that says why not.

Safe to use from many threads. Of Pillow's global state only its limit of pixels is touched: it is raised to the highest
that was asked for, since the sizes in headers are checked here.
"""

import hashlib
import io
import struct
from contextlib import suppress
from typing import Any

import pi_heif
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from models.image_colours import NotFinite, as_shown, cleared
from models.image_files import SoundFile, ended_jpegs, sound_file, without_exif

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
MAX_EDGE = 65_535  # what JPEG can say; Pillow keeps a pointer for every row
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes per pixel that memory holds at most while an image is decoded and converted, by its mode; and what its format
# takes beside (measured on 20 million pixels).
_BYTES_OF_MODE = {"1": 2, "L": 2, "P": 5, "RGB": 4, "CMYK": 8}
_BYTES_OF_OTHER_MODES = 12
_BYTES_OF_FORMAT = {"WEBP": 12, "AVIF": 8, "HEIF": 6, "TIFF": 6}
_BYTES_OF_PROGRESSIVE_JPEG = 6
_BYTES_OF_JPEG_WITHOUT_END = 8  # it is decoded again
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


class ImageRejected(ValueError):
    """The bytes are not an image that can be used; the message is for whoever sent them."""


class OpenedImage:
    """An image file of which the header was read. `decoded_bytes` is what memory holds at most while it is decoded.

    `decode` may be called once.
    """

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._file = sound_file(data)
        self._image = _open(self._file, max_pixels)
        self.decoded_bytes = _decoded_bytes(self._image)
        if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-64:]:
            self.decoded_bytes += self._image.width * self._image.height * _BYTES_OF_JPEG_WITHOUT_END

    def decode(self) -> Image.Image:
        """Return the image as L where it is grey, and as RGB otherwise. Raises `ImageRejected`."""
        try:
            image = self._loaded()
            turn = _UPRIGHT.get(_orientation(image))
            shown = as_shown(image, self._image.info.get("icc_profile"))
            return shown if turn is None else shown.transpose(turn)
        except (ImageRejected, NotFinite) as error:
            raise ImageRejected(str(error)) from error
        except Exception as error:
            raise ImageRejected(f"The image is damaged or incomplete: {error}") from error

    def _loaded(self) -> Image.Image:
        image = self._image
        try:
            image.load()
        except OSError:
            if image.format not in ("JPEG", "MPO"):
                raise
            return _without_end(self._file.data)
        if self._file.key_16 is not None:
            return cleared(image, _low_bytes(self._file.data), self._file.key_16)
        if image.mode.startswith("I;16") and _is_white_zero(image):
            return image.point(lambda value: value * -1 + 65535)
        return image


def open_image(data: bytes, max_pixels: int = 64_000_000) -> OpenedImage:
    """Read an image file's header, and check its size against `max_pixels`. Raises `ImageRejected`."""
    if not data:
        raise ImageRejected("The file is empty.")
    try:
        return OpenedImage(data, max_pixels)
    except ImageRejected:
        raise
    except UnidentifiedImageError as error:
        raise ImageRejected(f"The file is not an image of a known format ({', '.join(FORMATS)}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(f"The image has far too many pixels; at most {max_pixels} are accepted.") from error
    except Exception as error:
        raise ImageRejected(f"The image is damaged or incomplete: {error}") from error


def decode_image(data: bytes, max_pixels: int = 64_000_000) -> Image.Image:
    """Return the image as RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Palettes, CMYK, grey and 16-bit images are converted, colours are taken to sRGB as their profile says, and
    transparent parts become white. The header's size is checked against `max_pixels` before anything is decoded.
    Raises `ImageRejected`.
    """
    image = open_image(data, max_pixels).decode()
    return image if image.mode == "RGB" else image.convert("RGB")


def thumbnail_jpeg(image: Image.Image, edge: int = 160) -> bytes:
    """Return a JPEG of an RGB or L image whose longer edge has at most `edge` pixels."""
    scale = min(1.0, edge / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85, icc_profile=None)
    return stream.getvalue()


def _open(file: SoundFile, max_pixels: int) -> ImageFile.ImageFile:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    try:
        image = Image.open(io.BytesIO(file.data), formats=FORMATS)
    except (UnidentifiedImageError, ValueError):
        other = without_exif(file.data)
        if other == file.data:
            raise
        image = Image.open(io.BytesIO(other), formats=FORMATS)
    image.info.update(file.info)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejected(f"The image has {width} x {height} pixels; at most {max_pixels} are accepted.")
    if max(width, height) > MAX_EDGE:
        raise ImageRejected(f"The image has {width} x {height} pixels; an edge has at most {MAX_EDGE}.")
    return image


def _decoded_bytes(image: ImageFile.ImageFile) -> int:
    """Return the most that memory holds of an image at a time: as it is decoded, converted or turned."""
    of_format = _BYTES_OF_FORMAT.get(str(image.format), 0)
    if "progressive" in image.info:
        of_format = _BYTES_OF_PROGRESSIVE_JPEG
    of_mode = _BYTES_OF_MODE.get(image.mode, _BYTES_OF_OTHER_MODES)
    if image.has_transparency_data:
        of_mode = _BYTES_OF_OTHER_MODES
    turned = min(of_mode, 4) if _orientation(image) in _UPRIGHT else 0
    return image.width * image.height * (of_mode + max(of_format, turned))


def _without_end(data: bytes) -> Image.Image:
    """Return a JPEG that has all its pixels but no end marker. Raises OSError where pixels are missing."""
    digests = set()
    for ended in ended_jpegs(data):
        image = Image.open(io.BytesIO(ended), formats=("JPEG",))
        image.load()
        digests.add(hashlib.sha256(image.tobytes()).digest())
    if len(digests) != 1:
        raise OSError("image file is truncated")
    return image


def _low_bytes(data: bytes) -> Image.Image:
    """Return RGB of the lower bytes of a PNG that has 16 bits per channel: read as if they came in the other order."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether a TIFF's 0 is white, which Pillow heeds with 8 bits only."""
    tags: Any = getattr(image, "tag_v2", {})
    return bool(tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. `ImageOps.exif_transpose` also writes the other tags back, and fails where one of
    them is malformed."""
    orientation = None
    # Metadata that cannot be read says nothing about sound pixels.
    with suppress(SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        # Not PNG's own method, which decodes the image to look for EXIF behind the pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) else 1
