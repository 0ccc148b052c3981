"""The rows of a training in memory: those that h and g learn from, and those held out, which they never see."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.normalize import l2_normalize
from models.training.features import PairedFeatures
from service.domain.training.files import FeatureRows, RowRange, TrainingFiles, Vectors
from service.tables import ModelVersion

_HELD_OUT_SHARE = 10
_MOST_HELD_OUT = 5_000


@dataclass(frozen=True)
class TrainingRows:
    """`g` is None when the rows have no side-information of the new version. `images_sha256` is a digest of all image
    files, in order, and `skipped` how many of them could not be read."""

    h: PairedFeatures
    g: PairedFeatures | None
    held_out: FeatureRows
    skipped: int
    images_sha256: str | None


def load_rows(
    files: TrainingFiles, ranges: Sequence[RowRange], before: ModelVersion, after: ModelVersion, seed: int, device: str
) -> TrainingRows:
    """Read all rows, a file at a time. A random tenth, at most 5,000 rows, is held out: the same for the same seed.

    Embeddings of a version that normalises are normalised, as the service does when it encodes.
    """
    count = sum(row_range.count for row_range in ranges)
    held_out = np.zeros(count, bool)
    chosen = np.random.default_rng(seed).permutation(count)[: min(_MOST_HELD_OUT, count // _HELD_OUT_SHARE)]
    held_out[chosen] = True

    learning, holding = _Columns(count - len(chosen)), _Columns(len(chosen))
    digest, looked_at = hashlib.sha256(), 0
    first = 0
    for rows in files.read_rows(ranges):
        part = held_out[first : first + len(rows)]
        for name, values in _arrays(rows, before, after):
            learning.append(name, values[:, ~part])
            holding.append(name, values[:, part])
        learning.advance(int((~part).sum()))
        holding.advance(int(part.sum()))
        first += len(rows)
        if rows.source_sha256 is not None:
            digest.update(rows.source_sha256.tobytes())
            looked_at += len(rows.source_sha256)

    _number_labels(learning.arrays, holding.arrays)
    views = len(learning.arrays["embedding_from"])
    features = {
        name: torch.from_numpy(values.reshape(-1, *values.shape[2:])).to(device)
        for name, values in learning.arrays.items()
    }
    return TrainingRows(
        _pairs(features, "embedding_to", views),
        _pairs(features, "side_information_to", views) if "side_information_to" in features else None,
        _held_out(holding.arrays),
        looked_at - count if looked_at else 0,
        digest.hexdigest() if looked_at else None,
    )


class _Columns:
    """Arrays (V, count, ...) by name, filled from the front, so that no row is in memory twice but those of the file
    being read."""

    def __init__(self, count: int) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._count = count
        self._filled = 0

    def append(self, name: str, values: NDArray[Any]) -> None:
        if name not in self.arrays:
            self.arrays[name] = np.empty((len(values), self._count, *values.shape[2:]), values.dtype)
        self.arrays[name][:, self._filled : self._filled + values.shape[1]] = values

    def advance(self, count: int) -> None:
        self._filled += count


def _arrays(rows: FeatureRows, before: ModelVersion, after: ModelVersion) -> Iterable[tuple[str, NDArray[Any]]]:
    """Give (V, N, D) arrays of V views by name, and (1, N) labels: view 0 is what the encoders gave, each other one
    what a chained transformation gave for the same images, with the same target."""
    embedding = l2_normalize(rows.embedding_from) if before.normalize else rows.embedding_from
    views = _with_chained(embedding, rows.chained_embedding_from)
    yield "embedding_from", views
    yield "embedding_to", _repeated(l2_normalize(rows.embedding_to) if after.normalize else rows.embedding_to, views)
    if rows.side_information_from is not None:
        yield "side_information_from", _with_chained(rows.side_information_from, rows.chained_side_information_from)
    if rows.side_information_to is not None:
        yield "side_information_to", _repeated(rows.side_information_to, views)
    if rows.labels is not None:
        yield "labels", rows.labels[None]


def _with_chained(values: Vectors, chained: Vectors | None) -> Vectors:
    """(N, D) and (C, N, D) or None -> (1 + C, N, D)."""
    return values[None] if chained is None else np.concatenate([values[None], chained])


def _repeated(values: Vectors, views: Vectors) -> Vectors:
    """(N, D) -> (V, N, D), as many times as there are views."""
    return np.broadcast_to(values, (len(views), *values.shape))


def _held_out(arrays: dict[str, NDArray[Any]]) -> FeatureRows:
    """Return the rows of (V, N, ...) arrays; targets and labels are those of view 0."""
    chained = {
        f"chained_{name}": arrays[name][1:]
        for name in ("embedding_from", "side_information_from")
        if name in arrays and len(arrays[name]) > 1
    }
    return FeatureRows(**{name: values[0] for name, values in arrays.items()}, **chained)


def _number_labels(learning: dict[str, NDArray[Any]], holding: dict[str, NDArray[Any]]) -> None:
    """Replace labels by the positions of their classes, from 0 on."""
    if "labels" in learning:
        both = np.concatenate([learning["labels"], holding["labels"]], axis=1)
        numbers = np.unique(both, return_inverse=True)[1].astype(np.int64).reshape(both.shape)
        learning["labels"], holding["labels"] = np.split(numbers, [learning["labels"].shape[1]], axis=1)


def _pairs(features: dict[str, Tensor], target: str, views: int) -> PairedFeatures:
    labels = features.get("labels") if target == "embedding_to" else None  # g has no use for the new model's classes
    side = features.get("side_information_from")
    return PairedFeatures(features["embedding_from"], side, features[target], labels, views, kinds=views)
