"""Labelled images for training, read once into bytes; `models.image_sets` finds them.

Every image goes through the service's own `preprocess`, up to where mean and standard deviation come in: until then a
value is one of 256. With a `cache` folder the bytes stay in a file that is mapped into memory, so the next training
starts at once, and images may be more than memory holds:

    <cache>/<key>.npy       (N, 3, size, size) uint8
    <cache>/<key>.digest    of the pixels and classes; written last
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.durable import write_atomically
from models.image_sets import Classes, ImageSet, NoImages
from models.images import ImageRejected, decode_image
from models.preprocessing import Preprocessing, preprocess
from models.training.loop import Progress, no_progress

_BLOCK = 512


@dataclass(frozen=True)
class TrainingImages:
    """Images as a training reads them. `digest` changes with a pixel, a label, or a class's name."""

    pixels: Tensor  # (M, 3, size, size) uint8, of which `rows` are meant
    rows: Tensor  # (N,) int64
    labels: Tensor  # (N,) int64 positions in `classes`
    classes: list[str]
    preprocessing: Preprocessing
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor) -> Tensor:
        """(B,) int64 positions -> (B, 3, size, size) uint8."""
        return self.pixels[self.rows[positions]]

    def of_classes(self, classes: Sequence[int]) -> "TrainingImages":
        """Return the images of some classes, given by index; these then have the indices 0, 1, ... in this order."""
        if not classes or not set(classes) <= set(range(len(self.classes))) or len(set(classes)) < len(classes):
            raise ValueError(f"Classes are chosen once each, by index from 0 to {len(self.classes) - 1}.")
        new_index = torch.full((len(self.classes),), -1)
        new_index[list(classes)] = torch.arange(len(classes))
        labels = new_index[self.labels]  # (N,), -1 where it was not chosen
        chosen = labels >= 0
        names = [self.classes[index] for index in classes]
        digest = _digest(self.digest.encode(), json.dumps([names, list(classes)]).encode())
        return replace(self, rows=self.rows[chosen], labels=labels[chosen], classes=names, digest=digest)


def decode_images(
    files: Iterable[tuple[str, bytes]], classes: Classes, preprocessing: Preprocessing, progress: Progress = no_progress
) -> TrainingImages:
    """Return N images in memory; `files` are N times (where it lies, the file's bytes), and `progress` gets (images
    read, images in all). Raises NoImages."""
    pixels = np.empty((len(classes.labels), *preprocessing.shape), np.uint8)
    _decode(files, pixels, preprocessing, progress)
    return _training_images(pixels, classes, preprocessing, _content_digest(pixels, classes))


def read_images(
    source: ImageSet, preprocessing: Preprocessing, cache: Path, progress: Progress = no_progress
) -> TrainingImages:
    """Return a set's images, mapped from the folder `cache`, where they are written if need be. Raises NoImages.

    A set is known there by its files' paths, sizes and times of change, and by the preprocessing: a file that
    changed means another entry. Entries appear complete or not at all, and may be deleted at any time.
    """
    classes = source.classes()
    path = cache / f"{_key(source, preprocessing)}.npy"
    digest = path.with_suffix(".digest")
    if not (path.exists() and digest.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: _write_pixels(part, source, preprocessing, progress))
        content_digest = _content_digest(np.load(path, mmap_mode="c"), classes)
        write_atomically(digest, lambda part: part.write_text(content_digest))
    # Mapped copy-on-write, since torch warns of arrays that cannot be written to.
    return _training_images(np.load(path, mmap_mode="c"), classes, preprocessing, digest.read_text())


def _training_images(
    pixels: NDArray[np.uint8], classes: Classes, preprocessing: Preprocessing, digest: str
) -> TrainingImages:
    rows, labels = torch.arange(len(pixels)), torch.from_numpy(classes.labels)
    return TrainingImages(torch.from_numpy(pixels), rows, labels, classes.names, preprocessing, digest)


def _write_pixels(path: Path, source: ImageSet, preprocessing: Preprocessing, progress: Progress) -> None:
    shape = (len(source), *preprocessing.shape)
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    _decode(((image.where, image.data) for image in source.read()), pixels, preprocessing, progress)
    pixels.flush()


def _decode(
    files: Iterable[tuple[str, bytes]], pixels: NDArray[np.uint8], preprocessing: Preprocessing, progress: Progress
) -> None:
    """Write every image into its row of (N, 3, size, size)."""
    unit = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def write(row: int, file: tuple[str, bytes]) -> None:
        where, data = file
        try:
            pixels[row] = np.rint(preprocess(decode_image(data), unit) * 255)
        except ImageRejected as error:
            raise NoImages(f"{where}: {error}") from error

    left = iter(files)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for start in range(0, len(pixels), _BLOCK):
            block = list(islice(left, _BLOCK))
            list(threads.map(write, range(start, start + len(block)), block))
            progress(start + len(block), len(pixels))


def _key(source: ImageSet, preprocessing: Preprocessing) -> str:
    listing = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path.absolute, source.paths)]
    of_pixels = {name: value for name, value in preprocessing.to_json().items() if name not in ("mean", "std")}
    return _digest(json.dumps([listing, of_pixels], sort_keys=True).encode())[:32]


def _content_digest(pixels: NDArray[np.uint8], classes: Classes) -> str:
    return _digest(pixels.data, classes.labels.tobytes(), json.dumps(classes.names).encode())


def _digest(*parts: bytes | memoryview) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
