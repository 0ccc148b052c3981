"""What may be searched with, told apart."""

import io
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from gallery_upgrade.core.calls import File

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

# A path, the bytes of a file, a PIL image, or an array: (H, W) or (H, W, 3 or 4) uint8.
Image: TypeAlias = "str | Path | bytes | NDArray[np.uint8] | Any"


_MODES_OF_PNG = frozenset({"1", "I;16", "I;16B", "L", "LA", "P", "RGB", "RGBA"})
_MODES_OF_TIFF = frozenset({"CMYK", "F", "I", "LAB"})
# What is left, HSV and YCbCr among it, becomes RGB, as it does where it is shown.
_MODE_OF_OTHERS = {"I;16L": "I", "I;16N": "I", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_ORIENTATION = 274


@dataclass(frozen=True)
class ImageQuery:
    file: File


@dataclass(frozen=True)
class VectorQuery:
    """`vectors` are (Q, D); `single` when one was given as (D,)."""

    vectors: list[list[float]]
    single: bool


@dataclass(frozen=True)
class ItemQuery:
    item_id: str


def query_of(query: Image) -> ImageQuery | VectorQuery | ItemQuery:
    """Return what a query is: a string is the path of a file that is there, and else an item's id; an array of uint8 is
    an image, one of floating-point numbers is a vector (D,) or vectors (Q, D).

    Raises TypeError for anything else.
    """
    if isinstance(query, str):
        path = Path(query).expanduser()
        return ImageQuery(File(path.name, path)) if path.is_file() else ItemQuery(query)
    array: Any = query
    if hasattr(array, "dtype") and array.dtype.kind == "f":
        if array.ndim not in (1, 2):
            raise TypeError(f"Vectors are (D,) or (Q, D), not {array.shape}.")
        return VectorQuery(array.reshape(-1, array.shape[-1]).astype(float).tolist(), single=array.ndim == 1)
    return ImageQuery(image_file(query))


def image_file(image: Image) -> File:
    """Return an image as a file that can be sent. A PIL image and an array become a file without loss, with the colour
    profile and the EXIF orientation, so that the service sees what it would see in the file that they came from.

    Raises TypeError for what is no image.
    """
    if isinstance(image, bytes):
        return File("query", image)
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        return File(path.name, path)
    if hasattr(image, "dtype"):
        if image.dtype.kind != "u" or image.dtype.itemsize != 1:
            raise TypeError(f"An image is an array of uint8, not of {image.dtype}.")
        import PIL.Image

        image = PIL.Image.fromarray(image)
    if hasattr(image, "save"):
        return _written(cast("PIL.Image.Image", image))
    raise TypeError(f"An image is a path, bytes, a PIL image or an array, not {type(image).__name__}.")


def _written(image: "PIL.Image.Image") -> File:
    """Return a PIL image as PNG, or as TIFF where PNG has no such pixels; of modes that neither has, in another one."""
    import PIL.Image

    image.load()  # a TIFF is turned by PIL when it is loaded
    exif = PIL.Image.Exif()
    # As with the service, metadata that cannot be read says nothing.
    with suppress(SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        exif[_ORIENTATION] = PIL.Image.Image.getexif(image)[_ORIENTATION]
    if image.mode not in _MODES_OF_PNG | _MODES_OF_TIFF:
        image = image.convert(_MODE_OF_OTHERS.get(image.mode, "RGB"))

    stream = io.BytesIO()
    if image.mode in _MODES_OF_PNG:
        image.save(stream, format="PNG", exif=exif)
        return File("query.png", stream.getvalue())
    image.save(stream, format="TIFF", exif=exif, compression="tiff_deflate")
    return File("query.tif", stream.getvalue())
