"""Data sets that the operator lays below one folder (`GALLERY_DATASETS`) for trainings, in one of three forms: class
folders of image files, Parquet of images (columns `image` and `label`), Parquet of paired vectors.

Nothing outside of that folder is opened, whatever the name says and wherever links lead.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import Unprocessable
from service.networks.images import ImageSet, NoImages, OtherColumns, find_images, parquet_files

PAIRS_COLUMN = "embedding_from"


class DatasetRefused(Unprocessable):
    """There is no such data set, or it cannot be used."""


@dataclass(frozen=True)
class PairFiles:
    """Parquet files of paired vectors."""

    paths: list[Path]


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
    def check_link(link: Path) -> None:
        if not link.resolve().is_relative_to(root):
            raise DatasetRefused(f"Data set {name!r} has a link that leads out of the folder that the operator set.")

    parquet = parquet_files(place, check_link)
    columns = [pq.read_schema(path).names for path in parquet]
    if parquet and PAIRS_COLUMN in columns[0]:
        return PairFiles(parquet)
    try:
        return find_images(place, check_link)
    except OtherColumns as error:
        raise DatasetRefused(
            f"The Parquet of data set {name!r} has neither columns image and label nor {PAIRS_COLUMN} and embedding_to."
        ) from error
    except NoImages as error:
        raise DatasetRefused(f"Data set {name!r} has neither Parquet files nor class folders with images.") from error
