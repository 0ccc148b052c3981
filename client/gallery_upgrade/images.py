"""What may be searched with, told apart."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gallery_upgrade.core.calls import File

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A path, the bytes of a file, a PIL image, or an array: (H, W) or (H, W, 3 or 4) uint8.
Image: TypeAlias = "str | Path | bytes | NDArray[np.uint8] | Any"


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
    """Return an image as a file that can be sent; a PIL image and an array become PNG.

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
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        return File("query.png", stream.getvalue())
    raise TypeError(f"An image is a path, bytes, a PIL image or an array, not {type(image).__name__}.")
