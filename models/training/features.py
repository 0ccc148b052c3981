"""Features of a training set: what h and g learn from, and keeping what encoders gave in memory-mapped arrays.

The paper's code runs the three frozen encoders again in every epoch of h. Here each runs once over a few views of every
image, and h learns from the arrays: an epoch of 50,000 images takes seconds on a CPU.

    <folder>/<digest>.npy     (V, N, D) float32; view 0 is the image as it is, the others are augmented
    <folder>/<digest>.json    what it was computed from

The digest is that of the network, the images and the views, so an array is never taken for another one's.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.artifacts import save_network
from models.backbones import Backbone
from models.durable import write_atomically
from models.training.augmentation import light_views
from models.training.data import TrainingImages
from models.training.fitting import encode
from models.training.loop import Progress, no_progress, shuffled_batches

Features = NDArray[np.float32]  # (V, N, D)
_BATCH = 500


@dataclass(frozen=True)
class PairedFeatures:
    """What a transformation learns from: rows of the same N images under two versions, all on one device.

    embedding: (V·N, D_from), side_information: (V·N, S_from) or None, target: (V·N, D_to), all float32; the target is
    the new embedding for h, the new side-information for g. labels: (N,) int64 or None. With V = `views` above 1, row
    v·N + i is view v of image i, and view 0 is the image as it is. The views are of `kinds` kinds, with equally many of
    each, one kind after the other: what an encoder gives of the image, and what transformations give for it.
    """

    embedding: Tensor
    side_information: Tensor | None
    target: Tensor
    labels: Tensor | None
    views: int = 1
    kinds: int = 1

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.embedding) // self.views

    def batches(self, size: int, generator: torch.Generator) -> Iterator["PairedFeatures"]:
        """Give every image once of each kind, in random order, each by a view of that kind drawn at random."""
        of_a_kind = self.views // self.kinds
        for drawn in shuffled_batches(len(self) * self.kinds, size, generator):
            images, views = drawn % len(self), drawn // len(self) * of_a_kind
            if of_a_kind > 1:
                views = views + torch.randint(of_a_kind, (len(images),), generator=generator)
            yield self._rows(images + len(self) * views, images, views=1, kinds=1)

    def take(self, images: Tensor) -> "PairedFeatures":
        """Return some of the images, by (M,) int64 positions, with all their views."""
        rows = (torch.arange(self.views)[:, None] * len(self) + images).flatten()
        return self._rows(rows, images, self.views, self.kinds)

    def first_view(self) -> "PairedFeatures":
        """Return the images as they are."""
        images = torch.arange(len(self))
        return self._rows(images, images, views=1, kinds=1)

    def first_views(self) -> "PairedFeatures":
        """Return the first view of each kind, of all images."""
        images = torch.arange(len(self))
        first = torch.arange(self.kinds)[:, None] * (self.views // self.kinds)
        return self._rows((first * len(self) + images).flatten(), images, self.kinds, self.kinds)

    def _rows(self, rows: Tensor, images: Tensor, views: int, kinds: int) -> "PairedFeatures":
        return replace(
            self,
            embedding=self.embedding[rows],
            side_information=None if self.side_information is None else self.side_information[rows],
            target=self.target[rows],
            labels=None if self.labels is None else self.labels[images],
            views=views,
            kinds=kinds,
        )


def cached_features(
    folder: Path, encoder: Backbone, images: TrainingImages, views: int = 1, progress: Progress = no_progress
) -> Features:
    """Return the (V, N, D) features of N images, memory-mapped; computed only if `folder` lacks them.

    The views of two networks are the same images. `progress` gets (views done, views in all).
    """
    provenance = {
        "network": hashlib.sha256(save_network(encoder)).hexdigest(),
        "images": images.digest,
        "preprocessing": images.preprocessing.to_json(),
        "views": views,
    }
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{digest}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: _write_features(part, encoder, images, views, progress))
        write_atomically(path.with_suffix(".json"), lambda part: part.write_text(json.dumps(provenance, indent=2)))
    features: Features = np.load(path, mmap_mode="c")  # copy-on-write: torch warns of arrays that cannot be written to
    return features


def _write_features(path: Path, encoder: Backbone, images: TrainingImages, views: int, progress: Progress) -> None:
    array = np.lib.format.open_memmap(path, "w+", np.float32, (views, len(images), encoder.embedding_dim))
    encoder.eval()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for view in range(views):
            torch.manual_seed(view)  # light views draw from torch's own generator
            for positions in torch.split(torch.arange(len(images)), _BATCH):
                pixels = images.take(positions)
                if view > 0:
                    pixels = light_views(pixels, flip=True)
                array[view, positions.numpy()] = encode(encoder, pixels, images.preprocessing, "float32").numpy()
            progress(view + 1, views)
    array.flush()
