"""From pixels of any kind to those that a screen shows: 8 bits per channel, sRGB, on white.

Grey pictures stay grey until somebody needs three channels: they take a quarter of the memory.
"""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms

_WHITE = (255, 255, 255)
_STRIP_PIXELS = 2**20
_GREY_MODES = ("1", "L")
_SPACE_OF_MODE = {"RGB": "RGB ", "RGBA": "RGB ", "CMYK": "CMYK", "L": "GRAY"}


class NotFinite(ValueError):
    """The picture has values that are not finite."""


def as_shown(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a loaded picture as L where it is grey, and as RGB otherwise; `profile` is its ICC profile, if any.

    Transparent parts become white. A picture whose own alpha is 0 everywhere, but which has colours, is one whose
    writer left alpha unused: it is shown without. A profile that is damaged, or is of other colours than the picture's,
    is passed over. Raises `NotFinite`.
    """
    has_own_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "LAB":
        image = _from_lab(image)
    elif image.mode not in (*_GREY_MODES, "CMYK", "RGB"):
        image = image.convert("RGB")

    if profile:
        image = _in_srgb(image, profile)
    if image.mode == "RGBA":
        return _on_white(image, has_own_alpha)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def cleared(image: Image.Image, low_bytes: Image.Image, key: tuple[int, int, int]) -> Image.Image:
    """Return RGBA in which pixels of the colour `key`, of 16 bits per channel, are transparent.

    `image` and `low_bytes` are RGB of the upper and the lower bytes of the channels.
    """
    mask = Image.new("L", image.size, 255)
    for half, shift in ((image, 8), (low_bytes, 0)):
        for band, wanted in zip(half.split(), key, strict=True):
            byte = wanted >> shift & 255
            matches = band.point([255 if value == byte else 0 for value in range(256)])
            mask = ImageChops.darker(mask, matches)
    image = image.copy()
    image.putalpha(ImageChops.invert(mask))
    return image


def _on_white(image: Image.Image, has_own_alpha: bool) -> Image.Image:
    *colours, (low, high) = _extrema(image)
    is_coloured = any(most for _, most in colours)
    if low == 255 or (high == 0 and has_own_alpha and is_coloured):
        return image.convert("RGB")
    page = Image.new("RGB", image.size, _WHITE)
    page.paste(image, mask=image)
    return page


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return the picture with its colours in sRGB, as the profile says what they are."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        if space == "RGB " and image.mode == "L":
            image = image.convert("RGB")
        if space != _SPACE_OF_MODE.get(image.mode):
            return image
        kept = image.mode if image.mode in ("RGBA", "L") else "RGB"
        transform = ImageCms.buildTransform(
            source,
            _srgb(),
            image.mode,
            "RGB" if image.mode == "L" else kept,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if image.mode != "CMYK" and _changes_nothing(transform, image.mode):
            return image
        return ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform is sRGB's own, but for rounding: most profiles are, and need no pass over pixels."""
    probe = _probe().convert(mode)
    after = ImageCms.applyTransform(probe, transform)
    assert after is not None
    difference = ImageChops.difference(probe.convert("RGB"), after.convert("RGB"))
    return all(high <= 1 for _, high in _extrema(difference))


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Return the least and the most value of each of several bands."""
    return [cast("tuple[int, int]", pair) for pair in cast("tuple[Any, ...]", image.getextrema())]


@cache
def _probe() -> Image.Image:
    """Return the greys and a cube of 17 x 17 x 17 colours."""
    steps = np.append(np.arange(0, 256, 16), 255)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    greys = np.repeat(np.arange(256), 3).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate([greys, cube], axis=1).astype(np.uint8))


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _from_lab(image: Image.Image) -> Image.Image:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    converted = ImageCms.profileToProfile(image, lab, _srgb(), outputMode="RGB")
    assert converted is not None
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 0..255; Pillow's own conversion would clip those above 255 to white.

    The range is 0..65535 for integers and 0..1 or 0..255 for floats, or, where values lie outside, their own. A value
    that stands for transparent gives RGBA.
    """
    ranges = np.array([(values.min(), values.max()) for _, values in _strips(image)])
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    if not np.isfinite(ranges).all():
        raise NotFinite("The image has pixel values that are not finite.")
    full = next((limit for limit in ((1.0, 255.0) if image.mode == "F" else (65535.0,)) if high <= limit), None)
    offset = 0.0
    if low < 0 or full is None:
        offset, full = low, high - low or 1.0

    grey = Image.new("L", image.size)
    key = image.info.get("transparency")
    alpha = Image.new("L", image.size, 255) if isinstance(key, int) else None
    for top, values in _strips(image):
        scaled = np.rint((values - np.float32(offset)) * np.float32(255 / full)).astype(np.uint8)
        grey.paste(Image.fromarray(scaled), (0, top))
        if alpha is not None:
            alpha.paste(Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255))), (0, top))
    return grey if alpha is None else Image.merge("RGBA", (grey, grey, grey, alpha))


def _strips(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Give the picture's values a few rows at a time, each with its first row's number."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        yield top, np.asarray(strip).astype(np.float32)
