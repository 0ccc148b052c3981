"""Galleries without images and encoders: vectors around class means, and h that nobody trained."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.paper.transformations import Features, Spec, Vectors
from models.artifacts import save_network
from models.transformation import Transformation

LABELS = np.arange(60) % 6
DIM = 4


class FewFeatures(Features):
    """Of 60 images; no encoder has to do with another one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder)
        generator = np.random.default_rng(0)
        means = generator.standard_normal((6, DIM))
        self._vectors = {
            name: (means[LABELS] + generator.standard_normal((60, DIM))).astype(np.float32)
            for name in ("old", "new", "simclr")
        }

    def test(self, name: str) -> Vectors:
        return self._vectors[name]

    def second_view(self, name: str) -> Vectors:
        return self._vectors[name] + np.float32(0.01)

    def labels(self, part: str, name: str = "new") -> torch.Tensor:
        return torch.from_numpy(LABELS)


def save_h(folder: Path, spec: Spec) -> None:
    """Write an h whose weights differ with the recipe and the seed."""
    torch.manual_seed(spec.seed + 10 * (spec.variant == "default"))
    side_dim = None if spec.side is None else DIM
    path = spec.file(folder)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save_network(Transformation(DIM, side_dim, DIM, 8).eval()))
