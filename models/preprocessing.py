"""From an RGB image to a network's values. The one `preprocess` serves training, ingest and query; its parameters
travel with the model version."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
Crop = Literal["none", "center", "squash"]
Channels = Literal["rgb", "bgr", "grey"]
ValueRange = tuple[int, int]
UNIT: ValueRange = (0, 1)
BYTES: ValueRange = (0, 255)
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,  # on Pillow images, torchvision makes no difference
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_CROPS = ("none", "center", "squash")
MAX_SIZE = 1024
_MAX_ASPECT = 16
_MAX_RESIZED_PIXELS = 2**24
_LARGEST_SUPPORT = 3  # pixels that a filter sees on each side: lanczos


@dataclass(frozen=True)
class Preprocessing:
    """What torchvision's `Resize` and `CenterCrop` do to Pillow images, then per channel (value - mean) / std, of
    values that are 0 to 1 or 0 to 255 as `value_range` says; `mean` and `std` are in the order of `channels`.

    `size` is an edge or (height, width). `crop="none"` resizes to it, after `Resize(resize)` where `resize` is given.
    `crop="center"` is `Resize(resize)`, by the shorter edge, then `CenterCrop(size)`; `crop="squash"` the same after
    `Resize((resize, resize))`. With a crop, `resize` is the longer edge of `size` unless given; one that is smaller
    pads with black, as torchvision does. Pillow always uses antialiasing. Raises ValueError with a sentence.
    """

    size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: Crop = "none"
    interpolation: Interpolation = "bilinear"
    channels: Channels = "rgb"
    value_range: ValueRange = UNIT

    def __post_init__(self) -> None:
        edges = tuple(self.size) if isinstance(self.size, list | tuple) else (self.size,)
        for edge in edges:
            _check_edge("size", edge, 1, MAX_SIZE)
        if len(edges) > 2 or not edges:
            raise ValueError("size must be one edge, or [height, width].")
        object.__setattr__(self, "size", edges[0] if len(edges) == 1 else edges)
        if self.channels not in get_args(Channels):
            raise ValueError(f"channels must be one of {', '.join(get_args(Channels))}.")
        if tuple(self.value_range) not in (UNIT, BYTES):
            raise ValueError("The range of values must be [0, 1] or [0, 255]; mean and std make others of these.")
        object.__setattr__(self, "value_range", UNIT if tuple(self.value_range) == UNIT else BYTES)
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), self.depth))
        if min(self.std) <= 0:
            raise ValueError("Each std must be above 0.")
        if self.crop not in _CROPS:
            raise ValueError('crop must be "none", "center" or "squash".')
        if self.interpolation not in tuple(_RESAMPLING):
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}.")
        if self.crop != "none" and self.resize is None:
            object.__setattr__(self, "resize", max(self.height, self.width))
        if self.resize is not None:
            _check_edge("resize", self.resize, 1, 2 * MAX_SIZE)

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def depth(self) -> int:
        """How many channels there are."""
        return 1 if self.channels == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, height, width): the shape of one image."""
        return self.depth, self.height, self.width

    def to_json(self) -> dict[str, Any]:
        """Return the parameters, as a version's spec has them: channels and range where they are not the usual."""
        values = asdict(self)
        for name, usual in (("channels", "rgb"), ("value_range", UNIT)):
            if values[name] == usual:
                del values[name]
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Preprocessing":
        """Return the parameters in `values`. Raises ValueError with a sentence."""
        unknown = sorted(set(values) - {field.name for field in fields(Preprocessing)})
        if unknown:
            raise ValueError(f"Preprocessing has no {', '.join(map(repr, unknown))}.")
        missing = [name for name in ("size", "mean", "std") if name not in values]
        if missing:
            raise ValueError(f"Preprocessing needs {', '.join(missing)}.")
        return Preprocessing(**values)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (depth, height, width) float32, C-contiguous, of an image that is RGB, or L for three channels alike. Grey
    is Pillow's L, of ITU-R 601-2."""
    values = _values(_framed(image, preprocessing), preprocessing)
    mean, std = (np.array(channels, np.float32) for channels in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))


def preprocess_batch(images: Sequence[Image.Image], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (B, depth, height, width) float32."""
    batch = np.empty((len(images), *preprocessing.shape), np.float32)
    for row, image in zip(batch, images, strict=True):
        row[...] = preprocess(image, preprocessing)
    return batch


def _values(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return an image's (height, width, depth) values, in the order of the channels and in their range."""
    values = np.asarray(image.convert("L" if preprocessing.channels == "grey" else "RGB"), dtype=np.float32)
    if preprocessing.value_range == UNIT:
        values = values / np.float32(255)
    if preprocessing.channels == "grey":
        return values[:, :, None]
    return values[:, :, ::-1] if preprocessing.channels == "bgr" else values


def _framed(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the image resized and cropped to its size."""
    size, resize = (preprocessing.width, preprocessing.height), preprocessing.resize
    resampling = _RESAMPLING[preprocessing.interpolation]
    if preprocessing.crop == "none":
        if resize is not None and not _is_line(image, resize):
            image = _resized(image, _by_shorter_edge(image.size, resize), resampling)
        return _resized(image, size, resampling)
    assert resize is not None
    if preprocessing.crop == "squash":
        return _center_crop(_resized(image, (resize, resize), resampling), size)
    resized = _by_shorter_edge(image.size, resize)
    if _is_line(image, resize):
        return _middle_of_line(image, resized, size, resampling)
    return _center_crop(_resized(image, resized, resampling), size)


def _is_line(image: Image.Image, resize: int) -> bool:
    """Return whether the image is so long that resizing it by its shorter edge would take memory without bounds."""
    aspect = max(image.size) / min(image.size)
    return aspect > _MAX_ASPECT and aspect * resize**2 > _MAX_RESIZED_PIXELS


def _by_shorter_edge(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return width and height after torchvision's `Resize(shorter)`, which cuts the longer edge to a whole number."""
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


def _resized(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def _center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle, `size` wide and high, as torchvision's `CenterCrop` cuts it: on black where it is larger."""
    left, top = map(_crop_offset, image.size, size)
    return image.crop((left, top, left + size[0], top + size[1]))  # Pillow gives black outside of the image


def _crop_offset(edge: int, size: int) -> int:
    """Return where the crop begins; torchvision pads an image that is smaller by half the difference, cut, before."""
    return round((edge - size) / 2) if edge >= size else -((size - edge) // 2)


def _middle_of_line(
    image: Image.Image, resized: tuple[int, int], size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    """Return what `_center_crop` cuts out of the image at the size `resized`, without computing the rest of its longer
    edge. Pillow keeps the corners of a part as single floats, so that a value may be 1 of 255 off."""
    axis = 0 if image.width > image.height else 1
    scale = image.size[axis] / resized[axis]
    margin = ceil(_LARGEST_SUPPORT * max(1.0, 1 / scale)) + 1
    corner = list(map(_crop_offset, resized, size))
    first, last = max(0, corner[axis] - margin), min(resized[axis], corner[axis] + size[axis] + margin)

    box = [0.0, 0.0, float(image.width), float(image.height)]
    box[axis], box[axis + 2] = first * scale, min(last * scale, box[axis + 2])
    part = list(resized)
    part[axis] = last - first
    middle = image.resize((part[0], part[1]), resampling, (box[0], box[1], box[2], box[3]))

    corner[axis] -= first
    return middle.crop((corner[0], corner[1], corner[0] + size[0], corner[1] + size[1]))


def _check_edge(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    if len(numbers) != count or not all(type(number) in (int, float) and isfinite(number) for number in numbers):
        word = {1: "one finite number", 3: "three finite numbers"}[count]
        raise ValueError(f"{name} must be {word}, one for each channel.")
    return tuple(float(number) for number in numbers)
