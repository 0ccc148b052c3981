"""Labelled images for training: found in a folder of class folders or in Parquet files, and read once into bytes.

Every image goes through the service's own `preprocess`, up to where mean and standard deviation come in: until then a
value is one of 256. With a `cache` folder the bytes stay in a file that is mapped into memory, so the next training
starts at once, and images may be more than memory holds.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.images import ImageRejected, decode_image
from models.preprocessing import Preprocessing, preprocess
from models.training.loop import Progress, no_progress

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_BLOCK = 512


class NoImages(ValueError):
    """The place has no images in a form that can be read; the message says what it has."""


@dataclass(frozen=True)
class ImageSource:
    """Image files with a class each, on a disk. `classes` are the classes' names, in the order of their indices."""

    paths: list[Path]  # of the images, or of Parquet files
    labels: NDArray[np.int64]  # (N,) positions in `classes`
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Give N times (where it lies, the file's bytes), in the order of `labels`."""
        for path in self.paths:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield str(path), path.read_bytes()
            else:
                yield from _parquet_files(path)


def find_images(place: Path) -> ImageSource:
    """Return the images of a folder of class folders, or of Parquet files with columns `image` and `label`.

    `place` is a folder or one Parquet file. Class folders are ordered by name. Parquet's classes are ordered by
    `label`, numbers as numbers, and named by `label_name` where there is one; a `label_name` alone serves as both.
    Raises NoImages.
    """
    parquet = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    if parquet:
        return _parquet_source(parquet)
    paths = [path for path in sorted(place.glob("*/*")) if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise NoImages(f"{place} has neither class folders with images nor Parquet files.")
    classes, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return ImageSource(paths, labels.astype(np.int64), classes.tolist())


def _parquet_source(paths: list[Path]) -> ImageSource:
    tables = []
    for path in paths:
        try:
            present = pq.read_schema(path).names
        except pa.ArrowInvalid as error:
            raise NoImages(f"{path} is not a Parquet file.") from error
        wanted = [name for name in ("label", "label_name") if name in present]
        if "image" not in present or not wanted:
            raise NoImages(f"{path} has no columns image and label; it has {', '.join(present)}.")
        tables.append(pq.read_table(path, columns=wanted))
    table = pa.concat_tables(tables, promote_options="permissive")
    if any(column.null_count for column in table.columns):
        raise NoImages("Some images of the Parquet files have no label.")
    columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
    keys = columns["label"] if "label" in columns else columns["label_name"]
    _, first, labels = np.unique(keys, return_index=True, return_inverse=True)
    names = columns.get("label_name", keys)
    return ImageSource(paths, labels.astype(np.int64), [str(name) for name in names[first]])


def _parquet_files(path: Path) -> Iterator[tuple[str, bytes]]:
    row = 0
    for block in pq.ParquetFile(path).iter_batches(_BLOCK, columns=["image"]):
        for value in block.column("image").to_pylist():
            # Some writers keep an image as a struct of its bytes and its path.
            yield f"{path}, row {row}", value["bytes"] if isinstance(value, dict) else value
            row += 1


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
    files: Iterable[tuple[str, bytes]],
    labels: NDArray[np.int64],
    classes: list[str],
    preprocessing: Preprocessing,
    progress: Progress = no_progress,
) -> TrainingImages:
    """Return N images in memory; `files` are as `ImageSource.files` gives them, and `progress` gets (images read,
    images in all). Raises NoImages."""
    pixels = np.empty((len(labels), 3, preprocessing.size, preprocessing.size), np.uint8)
    _decode(files, pixels, preprocessing, progress)
    digest = _content_digest(pixels, labels, classes)
    return _training_images(pixels, labels, classes, preprocessing, digest)


def read_images(
    source: ImageSource, preprocessing: Preprocessing, cache: Path, progress: Progress = no_progress
) -> TrainingImages:
    """Return a source's images, mapped from the folder `cache`, where they are written if need be. Raises NoImages.

    A source is known there by its files' paths, sizes and times of change, and by the preprocessing: a file that
    changed means another entry. Entries appear complete or not at all, and may be deleted at any time.
    """
    entry = cache / _key(source, preprocessing)
    if not entry.is_dir():
        _write_entry(entry, source, preprocessing, progress)
    # Mapped copy-on-write, since torch warns of arrays that cannot be written to.
    pixels = np.load(entry / "pixels.npy", mmap_mode="c")
    digest = (entry / "digest").read_text()
    return _training_images(pixels, source.labels, source.classes, preprocessing, digest)


def _training_images(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: list[str],
    preprocessing: Preprocessing,
    digest: str,
) -> TrainingImages:
    rows = torch.arange(len(labels))
    return TrainingImages(torch.from_numpy(pixels), rows, torch.from_numpy(labels), classes, preprocessing, digest)


def _write_entry(entry: Path, source: ImageSource, preprocessing: Preprocessing, progress: Progress) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=entry.parent))
    try:
        shape = (len(source), 3, preprocessing.size, preprocessing.size)
        pixels = np.lib.format.open_memmap(unfinished / "pixels.npy", "w+", np.uint8, shape)
        _decode(source.files(), pixels, preprocessing, progress)
        pixels.flush()
        (unfinished / "digest").write_text(_content_digest(pixels, source.labels, source.classes))
        os.rename(unfinished, entry)
    except OSError:
        if not entry.is_dir():  # where it is, another process has just written the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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


def _key(source: ImageSource, preprocessing: Preprocessing) -> str:
    listing = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path.absolute, source.paths)]
    of_pixels = {name: value for name, value in preprocessing.to_json().items() if name not in ("mean", "std")}
    return _digest(json.dumps([listing, of_pixels], sort_keys=True).encode())[:32]


def _content_digest(pixels: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> str:
    return _digest(pixels.data, labels.tobytes(), json.dumps(classes).encode())


def _digest(*parts: bytes | memoryview) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
