"""From an RGB image to a network's input. The one `preprocess` serves training, ingest and query; its parameters travel
with the model version."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIZE = 1024
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Preprocessing:
    """First the shorter edge is resized to `resize`, if given. Then `crop="none"` resizes to size x size, and
    `crop="center"` cuts the centre size x size out (there `resize` is `size` unless given). Then, per channel,
    (value / 255 - mean) / std. Raises ValueError with a sentence."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: Literal["none", "center"] = "none"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _check_edge("size", self.size, 1, MAX_SIZE)
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ValueError("Each std must be above 0.")
        if self.crop not in ("none", "center"):
            raise ValueError('crop must be "none" or "center".')
        if self.interpolation not in tuple(_RESAMPLING):
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}.")
        if self.crop == "center" and self.resize is None:
            object.__setattr__(self, "resize", self.size)
        if self.resize is not None:
            _check_edge("resize", self.resize, self.size if self.crop == "center" else 1, 2 * MAX_SIZE)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

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
    """Return (3, size, size) float32, C-contiguous, of an RGB image."""
    resampling = _RESAMPLING[preprocessing.interpolation]
    size = preprocessing.size
    if preprocessing.resize is not None:
        image = _resize_shorter_edge(_without_extremes(image), preprocessing.resize, resampling)
    if preprocessing.crop == "center":
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    elif image.size != (size, size):
        image = image.resize((size, size), resampling)
    values = np.asarray(image, dtype=np.float32) / np.float32(255)  # (size, size, 3)
    mean, std = (np.array(channels, np.float32) for channels in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))


def preprocess_batch(images: Sequence[Image.Image], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (B, 3, size, size) float32."""
    batch = np.empty((len(images), 3, preprocessing.size, preprocessing.size), np.float32)
    for row, image in zip(batch, images, strict=True):
        row[...] = preprocess(image, preprocessing)
    return batch


def _resize_shorter_edge(image: Image.Image, shorter: int, resampling: Image.Resampling) -> Image.Image:
    scale = shorter / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    return image if resized == image.size else image.resize(resized, resampling)


def _without_extremes(image: Image.Image) -> Image.Image:
    """Cut an image that is more than 16 times longer than wide to its middle: with its shorter edge resized, one line
    of pixels would take gigabytes."""
    width, height = (min(edge, _MAX_ASPECT * min(image.size)) for edge in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _check_edge(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _three_numbers(name: str, values: object) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(type(number) in (int, float) and isfinite(number) for number in numbers):
        raise ValueError(f"{name} must be three finite numbers.")
    return tuple(float(number) for number in numbers)
