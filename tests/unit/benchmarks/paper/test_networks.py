"""Which images the networks of the tables learn from: a set-up is worth nothing where two sets overlap unseen."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.paper.__main__ import wanted
from benchmarks.paper.classes import ALL, ANIMALS, FEW, SETS, THINGS
from benchmarks.paper.networks import LARGE, NETWORKS, read


def _write(place: Path, part: str, per_class: int) -> None:
    """Images of one colour each, in the order of 100 classes over and over."""
    generator = np.random.default_rng(0)
    files, labels = [], []
    for number in range(100 * per_class):
        stream = BytesIO()
        Image.new("RGB", (32, 32), tuple(generator.integers(0, 256, 3).tolist())).save(stream, "PNG")
        files.append(stream.getvalue())
        labels.append(number % 100)
    pq.write_table(pa.table({"image": files, "label": labels}), place / f"{part}.parquet")


def test_animals_and_things_are_halves_without_a_class_in_common() -> None:
    assert len(set(ANIMALS)) == len(set(THINGS)) == 50
    assert set(ANIMALS) | set(THINGS) == set(ALL)


def test_psi_of_another_domain_and_the_encoders_that_it_serves_have_no_class_in_common() -> None:
    of_psi = set(NETWORKS["animals-simclr"].classes)

    for name in ("things-old", "things-new"):
        assert not of_psi & set(NETWORKS[name].classes), name
    assert not of_psi & set(SETS["things"])
    assert set(NETWORKS["things-simclr"].classes) == set(NETWORKS["things-old"].classes)


def test_the_disjoint_training_sets_leave_classes_of_neither() -> None:
    old, new = set(NETWORKS["first"].classes), set(NETWORKS["disjoint-new"].classes)

    assert not old & new
    assert set(NETWORKS["first-simclr"].classes) == old
    assert set(SETS["25-to-79"]) == new
    assert set(ALL) - old - new == set(range(80, 100))


def test_every_h_is_of_networks_that_are_trained_and_has_a_file_of_its_own() -> None:
    specs = wanted()

    for spec in specs:
        names = [spec.old, spec.new, *(spec.side or spec.old).split("+"), *(spec.through or ())]
        assert set(names) <= set(NETWORKS), spec
        assert len({NETWORKS[name].size for name in names}) == 1, spec
    assert len({spec.file(Path("there")) for spec in specs}) == len(specs)


@pytest.mark.parametrize(("part", "of_each"), [("train", 3), ("test", 2)])
def test_images_of_another_size_are_those_of_a_few_classes_enlarged(tmp_path: Path, part: str, of_each: int) -> None:
    _write(tmp_path, part, of_each)

    images = read(tmp_path, part, tmp_path / "work")
    large = read(tmp_path, part, tmp_path / "work", LARGE)

    assert large.pixels.shape == (of_each * len(FEW), 3, LARGE, LARGE)
    assert large.preprocessing.size == LARGE
    assert large.digest != images.digest
    assert set(large.labels.tolist()) == set(FEW)
    for label in FEW:
        colours = images.take(torch.nonzero(images.labels == label).flatten())[:, :, 0, 0]
        enlarged = large.take(torch.nonzero(large.labels == label).flatten())
        assert torch.equal(enlarged[:, :, 0, 0], colours)
        assert torch.equal(enlarged[:, :, -1, -1], colours)
