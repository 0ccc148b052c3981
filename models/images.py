"""From a file's bytes to an RGB image, or a sentence that says why not."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_WHITE = (255, 255, 255, 255)


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
        with warnings.catch_warnings():
            # Pillow only warns above its own limit; ours is checked just below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageRejected(f"The image has {width} x {height} pixels; at most {max_pixels} are accepted.")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageRejected:
        raise
    except UnidentifiedImageError as error:
        raise ImageRejected(f"The file is not an image of a known format ({', '.join(FORMATS)}).") from error
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"The image has too many pixels; at most {max_pixels} are accepted.") from error
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, MemoryError) as error:
        raise ImageRejected(f"The image is damaged or incomplete: {error}") from error


def thumbnail_jpeg(image: Image.Image, edge: int = 160) -> bytes:
    """Return a JPEG whose longer edge has at most `edge` pixels."""
    small = image.copy()
    small.thumbnail((edge, edge))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale to 0..255; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageRejected("The image has pixel values that are not finite.")
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        scale = 255.0 if low >= 0 and high <= 1 else 1.0
    else:
        scale = 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8), mode="L")
