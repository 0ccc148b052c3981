"""The demonstration's images: scikit-learn's handwritten digits, or a user's own."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_LARGE = 5_000


class NoImages(ValueError):
    """The place has no images in a form that the demonstration reads."""


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
    """Return the images of a folder of class folders, or of Parquet files with columns `image` and `label`.

    `place` is a folder or one Parquet file. With a column `label_name`, classes have those names.
    """
    if place.is_file():
        return _load_parquet([place])
    parquet = sorted(place.glob("*.parquet"))
    if parquet:
        return _load_parquet(parquet)
    paths = [path for path in sorted(place.glob("*/*")) if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise NoImages(f"{place} has neither class folders with images nor Parquet files.")
    names = [path.parent.name for path in paths]
    return _labelled([path.read_bytes() for path in paths], names)


def _load_parquet(paths: list[Path]) -> LabelledImages:
    files: list[bytes] = []
    names: list[str] = []
    for path in paths:
        present = pq.read_schema(path).names
        label = "label_name" if "label_name" in present else "label"
        if "image" not in present or label not in present:
            raise NoImages(f"{path} has no columns image and label; it has {', '.join(present)}.")
        table = pq.read_table(path, columns=["image", label])
        values = table.column("image").to_pylist()
        # Some writers keep an image as a struct of its bytes and its path.
        files += [value["bytes"] if isinstance(value, dict) else value for value in values]
        names += [str(value) for value in table.column(label).to_pylist()]
    return _labelled(files, names)


def _labelled(files: list[bytes], names: list[str]) -> LabelledImages:
    classes, labels = np.unique(names, return_inverse=True)
    if len(classes) < 4:
        raise NoImages(f"At least four classes are needed; there are {len(classes)}.")
    return LabelledImages(files, labels.astype(np.int64), classes.tolist())


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
