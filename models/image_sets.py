"""Labelled images on a disk, as trainings of every network read them: class folders of image files, or Parquet files
with the columns `image` and `label` or `label_name`, of which the second names the classes where both are there.

An image in Parquet is bytes, or a struct with its `bytes`, as some writers have it. Nothing is decoded here, and images
are read one after another: a set may be larger than memory. Who looks for a set is told of each link before it is
followed, and may object.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".heic", ".heif"}
)
_READ_ROWS = 64

# Called with each link that is met; what it raises ends the search.
OnLink = Callable[[Path], object]


class NoImages(ValueError):
    """The place has no images in a form that can be read; the message says what it has."""


class OtherColumns(NoImages):
    """The place has Parquet files, but not of labelled images."""


class LabelledImage(NamedTuple):
    """An image file's bytes, none where there is no file, and its label; `where` tells people where it lies."""

    where: str
    data: bytes
    label: str


class Classes(NamedTuple):
    """The class of each image, (N,) int64 positions in `names`."""

    labels: NDArray[np.int64]
    names: list[str]


@dataclass(frozen=True)
class ImageFolder:
    """Image files by path, each with its folder's name as its label."""

    files: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> list[Path]:
        return [path for path, _ in self.files]

    def listing_sha256(self) -> str:
        """Return a digest that changes when files come, go or are renamed."""
        return _sha256(f"{label}/{path.name}" for path, label in self.files)

    def read(self, first: int = 0) -> Iterator[LabelledImage]:
        """Give the images from a position on."""
        for path, label in self.files[first:]:
            yield LabelledImage(str(path), path.read_bytes(), label)

    def classes(self) -> Classes:
        """Return the classes, in the order of their folders' names."""
        names, labels = np.unique([label for _, label in self.files], return_inverse=True)
        return Classes(labels.astype(np.int64), names.tolist())


@dataclass(frozen=True)
class ImageParquet:
    """Parquet files of images; `label_columns` are those of `label` and `label_name` that each file has."""

    paths: list[Path]
    label_columns: list[list[str]]
    rows: list[int]

    def __len__(self) -> int:
        return sum(self.rows)

    def listing_sha256(self) -> str:
        """Return a digest that changes when files come, go, are renamed or change their number of rows."""
        return _sha256(f"{path.name}/{rows}" for path, rows in zip(self.paths, self.rows, strict=True))

    def read(self, first: int = 0) -> Iterator[LabelledImage]:
        """Give the images from a position on."""
        for path, columns in zip(self.paths, self.label_columns, strict=True):
            with pq.ParquetFile(path) as file:
                row = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if first < row + rows:
                        yield from _read_group(file, group, path, columns[-1], row, first)
                    row += rows
                first = max(0, first - row)

    def classes(self) -> Classes:
        """Return the classes, in the order of their labels, numbers as numbers. Raises NoImages where labels are
        missing."""
        tables = [
            pq.read_table(path, columns=names) for path, names in zip(self.paths, self.label_columns, strict=True)
        ]
        table = pa.concat_tables(tables, promote_options="permissive")
        if any(column.null_count for column in table.columns):
            raise NoImages("Some images of the Parquet files have no label.")
        columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
        keys = columns["label"] if "label" in columns else columns["label_name"]
        _, first, labels = np.unique(keys, return_index=True, return_inverse=True)
        names = columns.get("label_name", keys)
        return Classes(labels.astype(np.int64), [str(name) for name in names[first]])


ImageSet = ImageFolder | ImageParquet


def find_images(place: Path, on_link: OnLink = lambda _link: None) -> ImageSet:
    """Return the images of `place`, a folder of class folders, a folder of Parquet files or one such file, in the order
    of their paths. Raises NoImages."""
    parquet = parquet_files(place, on_link)
    return _image_parquet(parquet) if parquet else _image_folder(place, on_link)


def parquet_files(place: Path, on_link: OnLink = lambda _link: None) -> list[Path]:
    """Return `place` if it is a file, else the Parquet files in that folder, by name."""
    if place.is_file():
        return [place]
    paths = sorted(path for path in place.glob("*.parquet") if path.is_file())
    for path in paths:
        if path.is_symlink():
            on_link(path)
    return paths


def _image_parquet(paths: list[Path]) -> ImageParquet:
    found = []
    for path in paths:
        try:
            present = pq.read_schema(path).names
        except pa.ArrowInvalid as error:
            raise NoImages(f"{path} is not a Parquet file.") from error
        found.append([name for name in ("label", "label_name") if name in present])
        if "image" not in present or not found[-1]:
            raise OtherColumns(f"{path} has no columns image and label; it has {', '.join(present)}.")
    return ImageParquet(paths, found, [pq.read_metadata(path).num_rows for path in paths])


def _image_folder(place: Path, on_link: OnLink) -> ImageFolder:
    files = []
    for folder in _sorted_entries(place, on_link, os.DirEntry.is_dir):
        images = _sorted_entries(Path(folder.path), on_link, _is_image)
        files += [(Path(image.path), folder.name) for image in images]
    if not files:
        raise NoImages(f"{place} has neither class folders with images nor Parquet files.")
    return ImageFolder(files)


def _sorted_entries(
    folder: Path, on_link: OnLink, is_wanted: Callable[[os.DirEntry[str]], bool]
) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        wanted = sorted(filter(is_wanted, entries), key=lambda entry: entry.name)
    for entry in wanted:
        if entry.is_symlink():
            on_link(Path(entry.path))
    return wanted


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()


def _read_group(
    file: pq.ParquetFile, group: int, path: Path, label_column: str, row: int, first: int
) -> Iterator[LabelledImage]:
    """Give the images of a row group, whose first row in the file is `row`, that are not before row `first`."""
    for batch in file.iter_batches(_READ_ROWS, row_groups=[group], columns=["image", label_column]):
        skipped = max(0, min(first - row, batch.num_rows))
        if skipped < batch.num_rows:
            part = batch.slice(skipped)
            labels = part.column(label_column).to_pylist()
            for position, image in enumerate(part.column("image").to_pylist()):
                yield LabelledImage(
                    f"{path}, row {row + skipped + position}", _image_bytes(image), str(labels[position])
                )
        row += batch.num_rows


def _image_bytes(value: Any) -> bytes:
    image = value.get("bytes") if isinstance(value, dict) else value
    return image if isinstance(image, bytes) else b""


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
