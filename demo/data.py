"""The demonstration's images: scikit-learn's handwritten digits, or a user's own."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.image_sets import NoImages, find_images

_LARGE = 5_000


@dataclass(frozen=True)
class LabelledImages:
    """Image files with a class each; `classes` are the class names, ascending."""

    files: list[bytes]
    labels: np.ndarray  # (N,) int64 positions in `classes`
    classes: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, positions: np.ndarray) -> "LabelledImages":
        return LabelledImages([self.files[i] for i in positions], self.labels[positions], self.classes)


def load_digits() -> LabelledImages:
    """Return the 1,797 scans of handwritten digits that ship inside scikit-learn, 8 x 8 grey pixels each, as PNG."""
    from sklearn.datasets import load_digits as load

    digits = load()
    files = []
    for pixels in digits.images:
        stream = io.BytesIO()
        Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    return LabelledImages(files, digits.target.astype(np.int64), [str(digit) for digit in range(10)])


def load_images(place: Path) -> LabelledImages:
    """Return the images of a folder of class folders, or of Parquet files, all in memory. Raises NoImages."""
    source = find_images(place)
    labels, classes = source.classes()
    if len(classes) < 4:
        raise NoImages(f"At least four classes are needed; there are {len(classes)}.")
    return LabelledImages([image.data for image in source.read()], labels, classes)


def split(images: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Return (for training, for the gallery), every class in both: half and half, or 5 to 1 when there are many."""
    share = 5 / 6 if len(images) > _LARGE else 1 / 2
    generator = np.random.default_rng(seed)
    train, gallery = [], []
    for label in range(len(images.classes)):
        positions = generator.permutation(np.flatnonzero(images.labels == label))
        cut = min(len(positions) - 1, max(1, round(share * len(positions))))
        train.append(positions[:cut])
        gallery.append(positions[cut:])
    return images.take(np.sort(np.concatenate(train))), images.take(np.sort(np.concatenate(gallery)))
