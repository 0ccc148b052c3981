"""The files of trainings in the blob store: the rows that are learned from, and checkpoints.

Each name begins with the training's own prefix, drawn at random, and says what it holds, so that a file never changes
under its name:
- `rows-<first>-<end>-<count>`: `count` rows of features, of the source's rows or images from position `first` to before
  `end`; images that cannot be read leave none;
- `<network>-<epochs done>`, `<network>-<epochs done>-<steps of the next one>`: a checkpoint of the training of h or g.
A file has its name only when it is whole and durable. `remove_unwanted` removes those of trainings that have ended, or
that never began.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from service.blobs import BlobStore
from service.durable import write_atomically

FOLDER = "trainings"
_ROWS = re.compile(r"rows-(\d+)-(\d+)-(\d+)")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """Rows of the same N images under two versions.

    The chained ones are what C transformations into the first version give for the images, as `service.domain.training.
    chains` finds them: what h and g are given in a gallery that was upgraded by one of them.
    """

    embedding_from: Vectors  # (N, D_from)
    embedding_to: Vectors  # (N, D_to)
    side_information_from: Vectors | None = None  # (N, S_from)
    side_information_to: Vectors | None = None  # (N, S_to)
    labels: NDArray[np.int64] | None = None  # (N,) as `label_numbers` gives them
    chained_embedding_from: Vectors | None = None  # (C, N, D_from)
    chained_side_information_from: Vectors | None = None  # (C, N, S_from)
    source_sha256: NDArray[np.uint8] | None = None  # (M, 32) of all M images that were looked at, readable or not

    def __len__(self) -> int:
        return len(self.embedding_from)


@dataclass(frozen=True, order=True)
class RowRange:
    """One file of rows: `count` of them, from the source's position `first` on, before `end`."""

    first: int
    end: int
    count: int

    @property
    def name(self) -> str:
        return f"rows-{self.first:012}-{self.end:012}-{self.count}"


class TrainedTo(NamedTuple):
    """How far a training is: the epochs that are done, and the steps of the next one."""

    epochs: int
    steps: int

    def name_of(self, network: str) -> str:
        """Return the name of the checkpoint of `network` (h or g)."""
        return f"{network}-{self.epochs:06}" + (f"-{self.steps:06}" if self.steps else "")


class TrainingFiles:
    """The files of one training."""

    def __init__(self, blobs: BlobStore, prefix: str) -> None:
        self._blobs = blobs
        self._prefix = prefix

    def add_rows(self, first: int, end: int, rows: FeatureRows) -> None:
        """Store rows; the next ones begin at `end`."""
        arrays = {name: np.ascontiguousarray(values) for name, values in asdict(rows).items() if values is not None}
        self._publish(RowRange(first, end, len(rows)).name, lambda path: safetensors.numpy.save_file(arrays, path))

    def row_ranges(self) -> list[RowRange]:
        """Return what is stored, from position 0 on and without a gap."""
        found = sorted(
            RowRange(*map(int, match.groups())) for name in self._names() if (match := _ROWS.fullmatch(name))
        )
        ranges: list[RowRange] = []
        for row_range in found:
            if row_range.first == (ranges[-1].end if ranges else 0):
                ranges.append(row_range)
        return ranges

    def read_rows(self, ranges: Sequence[RowRange]) -> Iterator[FeatureRows]:
        """Give the rows of each range, in order."""
        for row_range in ranges:
            with self._fetched(row_range.name) as path:
                rows = FeatureRows(**safetensors.numpy.load_file(path))
            yield rows

    def newest_checkpoint(self, network: str) -> TrainedTo:
        """Return how far the newest checkpoint of `network` (h or g) is; (0, 0) when there is none."""
        return max(self._checkpoints(network), default=TrainedTo(0, 0))

    def store_checkpoint(self, network: str, trained_to: TrainedTo, path: Path) -> None:
        """Store a checkpoint file, and remove every other one: those before it, and those of a training that could not
        be gone on from and was begun again."""
        self._publish(trained_to.name_of(network), lambda target: shutil.copyfile(path, target))
        for other, name in self._checkpoints(network).items():
            if other != trained_to:
                self._blobs.delete_file(self._path(name))

    def fetch_checkpoint(self, network: str, trained_to: TrainedTo, target: Path) -> None:
        """Copy a stored checkpoint to `target`, in one step."""
        with self._fetched(trained_to.name_of(network)) as path:
            write_atomically(target, lambda part: shutil.copyfile(path, part))

    def remove(self) -> None:
        """Remove every file of the training."""
        for name in self._names():
            self._blobs.delete_file(self._path(name))

    def _checkpoints(self, network: str) -> dict[TrainedTo, str]:
        """Return the names of stored checkpoints, by how far they are."""
        pattern = re.compile(rf"{network}-(\d+)(?:-(\d+))?")
        found = ((pattern.fullmatch(name), name) for name in self._names())
        return {TrainedTo(int(match[1]), int(match[2] or 0)): name for match, name in found if match}

    def _path(self, name: str) -> str:
        return f"{FOLDER}/{self._prefix}.{name}"

    def _names(self) -> list[str]:
        start = f"{self._prefix}."
        return [name.removeprefix(start) for name in self._blobs.list_files(FOLDER) if name.startswith(start)]

    def _publish(self, name: str, write: Callable[[Path], object]) -> None:
        self._blobs.publish(self._path(name), lambda path: write_atomically(path, write))

    @contextmanager
    def _fetched(self, name: str) -> Iterator[Path]:
        """Give a local path of a stored file; a copy, where one is needed, is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            yield self._blobs.fetch_file(self._path(name), Path(folder))


def remove_unwanted(blobs: BlobStore, local: Path, read_wanted: Callable[[], set[str] | None]) -> None:
    """Remove the files of trainings, in the blob store and in the folder `local`, whose prefix is not wanted.

    `read_wanted` is called after the names are read, and may say None: nothing can be told now.
    """
    stored, scratch = blobs.list_files(FOLDER), [path.name for path in local.glob("*.*")]
    wanted = read_wanted() if stored or scratch else None
    if wanted is None:
        return
    for name in stored:
        if name.partition(".")[0] not in wanted:
            blobs.delete_file(f"{FOLDER}/{name}")
    for name in scratch:
        if name.partition(".")[0] not in wanted:
            (local / name).unlink(missing_ok=True)


def label_numbers(labels: Sequence[str]) -> NDArray[np.int64]:
    """Return (N,) numbers that are equal where labels are: the same number for a label in every file."""
    names, positions = np.unique(np.array(labels, dtype=object), return_inverse=True)
    digests = [hashlib.sha256(str(name).encode()).digest()[:8] for name in names]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)[positions]
