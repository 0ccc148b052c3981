"""What the table of items would get wrong without a sign: whose view asks which gallery."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.paper.instances import Instances
from benchmarks.paper.open_classes import OPEN, OPEN_RECIPES
from benchmarks.paper.transformations import SEEDS, Features, Vectors
from models.artifacts import save_network
from models.transformation import LinearMap, Transformation

_DIM = 3
_COUNT = 500


class TurnedFeatures(Features):
    """φ_new is φ_old mirrored, ψ is nothing, and a second view lies beside its image, the farther the later."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder)
        generator = np.random.default_rng(0)
        self._old = generator.standard_normal((_COUNT, _DIM)).astype(np.float32)
        self._shift = np.linspace(0, 2, _COUNT, dtype=np.float32)[:, None]

    def test(self, name: str) -> Vectors:
        return _mirrored(name, self._old)

    def second_view(self, name: str) -> Vectors:
        return _mirrored(name, self._old + self._shift)

    def labels(self, part: str, name: str = "new") -> torch.Tensor:
        return torch.arange(_COUNT) % 100


def _mirrored(name: str, old: Vectors) -> Vectors:
    return {"old": old, "new": -old, "simclr": np.zeros_like(old)}[name]


def _save_mirror(folder: Path) -> None:
    """An h that gives φ_new exactly."""
    network = Transformation(_DIM, _DIM, _DIM, members=None, linear=True)
    linear = LinearMap(_DIM, _DIM, _DIM)
    with torch.no_grad():
        linear.weights.weight.copy_(torch.cat([-torch.eye(_DIM), torch.zeros(_DIM, _DIM)], dim=1))
        linear.weights.bias.zero_()
    network.linear_map = linear
    for recipe in OPEN_RECIPES:
        for seed in SEEDS:
            path = replace(OPEN, variant=recipe, seed=seed).file(folder)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(save_network(network))


def test_a_perfect_h_finds_as_many_items_by_the_new_encoders_views_as_a_gallery_encoded_anew(tmp_path: Path) -> None:
    _save_mirror(tmp_path)
    features = TurnedFeatures(tmp_path)

    text = Instances(features).small()

    rows = [line.strip("| ").split(" | ") for line in text.split("\n\n")[1].splitlines()[2:]]
    first = {cells[0]: cells[2].split(" ")[0] for cells in rows if cells[1] == "all"}
    distances = np.linalg.norm(features.second_view("old")[:, None] - features.test("old")[None], axis=2)
    expected = 100 * (distances.argmin(axis=1) == np.arange(_COUNT)).mean()
    assert 1 < expected < 90
    assert set(first.values()) == {f"{expected:.2f}"}
    assert {part for _, part, *_ in rows} == {"all", "known", "not known"}
    assert list(first)[-1] == "new/new"
