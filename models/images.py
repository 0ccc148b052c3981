"""From a file's bytes to an RGB image, or a sentence that says why not. Pillow's global state is left alone, so this is
safe to use from many threads."""

import io
import struct

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_WHITE = (255, 255, 255, 255)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(ValueError):
    """The bytes are not an image that can be used; the message is for whoever sent them."""


def decode_image(data: bytes, max_pixels: int = 64_000_000) -> Image.Image:
    """Return the image as RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Palettes, CMYK, grey and 16-bit images are converted; transparent parts become white. The header's size is checked
    against `max_pixels` before anything is decoded. Raises `ImageRejected`.
    """
    if not data:
        raise ImageRejected("The file is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageRejected(f"The image has {width} x {height} pixels; at most {max_pixels} are accepted.")
        image.load()
        return _to_rgb(_upright(image))
    except ImageRejected:
        raise
    except UnidentifiedImageError as error:
        raise ImageRejected(f"The file is not an image of a known format ({', '.join(FORMATS)}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected("The image has far too many pixels.") from error
    except Exception as error:
        raise ImageRejected(f"The image is damaged or incomplete: {error}") from error


def thumbnail_jpeg(image: Image.Image, edge: int = 160) -> bytes:
    """Return a JPEG of an RGB image whose longer edge has at most `edge` pixels."""
    small = image.copy()
    small.thumbnail((edge, edge))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. `ImageOps.exif_transpose` also writes the other tags back, and fails where one of
    them is malformed."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        return image  # metadata that cannot be read says nothing about sound pixels
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 0..255; Pillow's own conversion would clip those above 255 to white.

    The range is 0..65535 for integers and 0..1 or 0..255 for floats, or, where values lie outside, their own.
    """
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageRejected("The image has pixel values that are not finite.")
    full = next((limit for limit in ((1.0, 255.0) if image.mode == "F" else (65535.0,)) if high <= limit), None)
    if low < 0 or full is None:
        values -= low
        full = high - low or 1.0
    return Image.fromarray(np.rint(values * np.float32(255 / full)).astype(np.uint8))
