"""Data sets that the operator lays below one folder (`GALLERY_DATASETS`) for trainings, in one of three forms: class
folders of image files, Parquet of images (columns `image` and `label`), Parquet of paired vectors.

Nothing outside of that folder is opened, whatever the name says and wherever links lead.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import Unprocessable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"})
PAIRS_COLUMN = "embedding_from"
_READ_ROWS = 64

# An image file's bytes, and its label.
LabelledImage = tuple[bytes, str]


class DatasetRefused(Unprocessable):
    """There is no such data set, or it cannot be used."""


@dataclass(frozen=True)
class PairFiles:
    """Parquet files of paired vectors."""

    paths: list[Path]


@dataclass(frozen=True)
class ImageFolder:
    """Image files by path, each with its folder's name as its label."""

    files: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.files)

    def listing_sha256(self) -> str:
        """Return a digest that changes when files come, go or are renamed."""
        return _sha256(f"{label}/{path.name}" for path, label in self.files)

    def read(self, first: int) -> Iterator[LabelledImage]:
        """Give the images from a position on."""
        for path, label in self.files[first:]:
            yield path.read_bytes(), label


@dataclass(frozen=True)
class ImageParquet:
    """Parquet files of images; an image is bytes, or a struct with its `bytes`."""

    paths: list[Path]
    label_columns: list[str]
    rows: list[int]

    def __len__(self) -> int:
        return sum(self.rows)

    def listing_sha256(self) -> str:
        """Return a digest that changes when files come, go, are renamed or change their number of rows."""
        return _sha256(f"{path.name}/{rows}" for path, rows in zip(self.paths, self.rows, strict=True))

    def read(self, first: int) -> Iterator[LabelledImage]:
        """Give the images from a position on."""
        for path, label_column in zip(self.paths, self.label_columns, strict=True):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if first < rows:
                        yield from _read_group(file, group, label_column, first)
                    first = max(0, first - rows)


ImageSet = ImageFolder | ImageParquet


def find_dataset(root: Path | None, name: str) -> PairFiles | ImageSet:
    """Return the data set at `name`, a path relative to `root` or an absolute one below it.

    Raises `DatasetRefused` (422), also when it is not below `root` once links are followed.
    """
    if root is None:
        raise DatasetRefused(
            "This service reads no data sets: its operator has not set GALLERY_DATASETS. Upload pairs."
        )
    root = root.resolve()
    try:
        place = (root / name).resolve()
        inside = place.is_relative_to(root) and place.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, one with NUL, links in a circle
        inside = False
    if not inside:
        raise DatasetRefused(f"There is no data set {name!r} below the folder that the operator set.")
    try:
        return _open(root, place, name)
    except (pa.ArrowException, OSError) as error:
        raise DatasetRefused(f"Data set {name!r} cannot be read: {type(error).__name__}.") from error


def _open(root: Path, place: Path, name: str) -> PairFiles | ImageSet:
    parquet = [place] if place.is_file() else sorted(path for path in place.glob("*.parquet") if path.is_file())
    _check_inside(root, parquet, name)
    if not parquet:
        return _image_folder(root, place, name)
    columns = [pq.read_schema(path).names for path in parquet]
    if PAIRS_COLUMN in columns[0]:
        return PairFiles(parquet)
    labels = ["label_name" if "label_name" in names else "label" for names in columns]
    if not all("image" in names and label in names for names, label in zip(columns, labels, strict=True)):
        raise DatasetRefused(
            f"The Parquet of data set {name!r} has neither columns image and label nor {PAIRS_COLUMN} and embedding_to."
        )
    return ImageParquet(parquet, labels, [pq.read_metadata(path).num_rows for path in parquet])


def _image_folder(root: Path, place: Path, name: str) -> ImageFolder:
    files = []
    for folder in _sorted_entries(place):
        if folder.is_dir():
            _check_links(root, [folder], name)
            found = [entry for entry in _sorted_entries(Path(folder.path)) if _is_image(entry)]
            _check_links(root, found, name)
            files += [(Path(entry.path), folder.name) for entry in found]
    if not files:
        raise DatasetRefused(f"Data set {name!r} has neither Parquet files nor class folders with images.")
    return ImageFolder(files)


def _sorted_entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()


def _check_links(root: Path, entries: Iterable[os.DirEntry[str]], name: str) -> None:
    _check_inside(root, [Path(entry.path) for entry in entries if entry.is_symlink()], name)


def _check_inside(root: Path, paths: Iterable[Path], name: str) -> None:
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise DatasetRefused(f"Data set {name!r} has a link that leads out of the folder that the operator set.")


def _read_group(file: pq.ParquetFile, group: int, label_column: str, first: int) -> Iterator[LabelledImage]:
    for batch in file.iter_batches(_READ_ROWS, row_groups=[group], columns=["image", label_column]):
        if first < batch.num_rows:
            part = batch.slice(first)
            labels = part.column(label_column).to_pylist()
            for image, label in zip(part.column("image").to_pylist(), labels, strict=True):
                yield _image_bytes(image), str(label)
        first = max(0, first - batch.num_rows)


def _image_bytes(value: Any) -> bytes:
    image = value.get("bytes") if isinstance(value, dict) else value
    return image if isinstance(image, bytes) else b""


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
