"""From an RGB image to a network's input. The one `preprocess` serves training, ingest and query; its parameters travel
with the model version."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Preprocessing:
    """`crop="none"`: resize to size x size. `crop="center"`: the shorter edge to `resize` (default: size), then the
    centre size x size. Then (value / 255 - mean) / std per channel."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: Literal["none", "center"] = "none"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"size is from 1 to {MAX_SIZE}, not {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not np.isfinite([*self.mean, *self.std]).all():
            raise ValueError("mean and std are three finite numbers each")
        if min(self.std) <= 0:
            raise ValueError("std is positive")
        if self.crop not in ("none", "center") or self.interpolation not in _RESAMPLING:
            raise ValueError("crop is none or center; interpolation is nearest, bilinear, bicubic or lanczos")
        if self.resize is not None and not 1 <= self.resize <= 2 * MAX_SIZE:
            raise ValueError(f"resize is from 1 to {2 * MAX_SIZE}, not {self.resize}")
        if self.resize is not None and self.crop == "center" and self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) is at least size ({self.size}) when the centre is cropped")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Preprocessing":
        """Return the parameters in `values`; raises ValueError or TypeError with a sentence."""
        return Preprocessing(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (3, size, size) float32, C-contiguous, of an RGB image."""
    resampling = _RESAMPLING[preprocessing.interpolation]
    size = preprocessing.size
    if preprocessing.crop == "center" or preprocessing.resize is not None:
        shorter = preprocessing.resize or size
        scale = shorter / min(image.size)
        resized = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if resized != image.size:
            image = image.resize(resized, resampling)
    if preprocessing.crop == "center":
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    if image.size != (size, size):
        image = image.resize((size, size), resampling)
    values = np.asarray(image, dtype=np.float32) / np.float32(255)
    values = (values - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def preprocess_batch(images: Sequence[Image.Image], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (B, 3, size, size) float32."""
    return np.stack([preprocess(image, preprocessing) for image in images])
