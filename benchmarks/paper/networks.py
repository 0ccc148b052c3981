"""Every φ and ψ of the tables: how each is trained, on which images, and training them, several at a time."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.paper.classes import ALL, ANIMALS, FEW, THINGS
from models.backbones import Backbone, ConvEncoder, ResNet, SmallResNet
from models.image_sets import find_images
from models.preprocessing import Preprocessing
from models.training.checkpoints import CHECKPOINT, RECORD, load_checkpoint, rebuild_network
from models.training.data import TrainingImages, read_images
from models.training.encoder import EncoderTraining, train_encoder
from models.training.fitting import Run
from models.training.side_information import (
    AutoencoderTraining,
    SideInformationTraining,
    SimclrTraining,
    train_side_information,
)

PREPROCESSING = Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
_SMALL = partial(SmallResNet, 32, 1, 128, 2)
_PHI = partial(EncoderTraining, epochs=12, batch=256, learning_rate=0.3, precision="bfloat16")
_SIMCLR = partial(SimclrTraining, epochs=15, batch=256, learning_rate=2e-3, precision="bfloat16")

LARGE = 128
LARGE_IMAGES = {"train": 200, "test": 100}  # of each class
_RESNET_18 = partial(ResNet, 18, 128)
_LARGE_PHI = partial(EncoderTraining, epochs=10, batch=64, learning_rate=0.05, precision="bfloat16")
_LARGE_SIMCLR = partial(SimclrTraining, epochs=8, batch=128, learning_rate=1e-3, precision="bfloat16")


@dataclass(frozen=True)
class Network:
    """A network of the tables. It learns from images of `classes`, given by index, of `size` pixels."""

    build: Callable[[], Backbone]
    classes: Sequence[int]
    config: SideInformationTraining
    compatible_with: str | None = None
    size: int = PREPROCESSING.height


# The most wanted first: the tables can be begun when they are there.
NETWORKS: dict[str, Network] = {
    "old": Network(_SMALL, ALL[:50], _PHI(seed=0)),
    "new": Network(_SMALL, ALL, _PHI(seed=1)),
    "simclr": Network(_SMALL, ALL[:50], _SIMCLR(seed=2)),
    "alternate": Network(_SMALL, ALL[:50], _PHI(seed=3)),
    "first": Network(_SMALL, ALL[:25], _PHI(seed=4)),
    "first-simclr": Network(_SMALL, ALL[:25], _SIMCLR(seed=5)),
    "new-bct": Network(_SMALL, ALL, _PHI(seed=1), compatible_with="old"),
    "alternate-mixup": Network(_SMALL, ALL[:50], _PHI(seed=3, mixup=1.0)),
    "autoencoder": Network(_SMALL, ALL[:50], AutoencoderTraining(epochs=10, seed=6, precision="bfloat16")),
    "old-conv": Network(partial(ConvEncoder, 24, 128), ALL[:50], _PHI(seed=7)),
    "old-64": Network(partial(SmallResNet, 32, 1, 64, 2), ALL[:50], _PHI(seed=8)),
    "old-arcface": Network(_SMALL, ALL[:50], _PHI(seed=0, loss="arcface", learning_rate=0.1)),
    "new-arcface": Network(_SMALL, ALL, _PHI(seed=1, loss="arcface", learning_rate=0.1)),
    "things-old": Network(_SMALL, THINGS[:25], _PHI(seed=9)),
    "things-new": Network(_SMALL, THINGS, _PHI(seed=10)),
    "things-simclr": Network(_SMALL, THINGS[:25], _SIMCLR(seed=11)),
    "animals-simclr": Network(_SMALL, ANIMALS, _SIMCLR(seed=12)),
    "disjoint-new": Network(_SMALL, ALL[25:80], _PHI(seed=13)),
    "large-old": Network(_RESNET_18, FEW[:10], _LARGE_PHI(seed=14), size=LARGE),
    "large-new": Network(_RESNET_18, FEW, _LARGE_PHI(seed=15), size=LARGE),
    "large-simclr": Network(_RESNET_18, FEW[:10], _LARGE_SIMCLR(seed=16), size=LARGE),
}


def read(place: Path, part: str, folder: Path, size: int = PREPROCESSING.height) -> TrainingImages:
    """Return the images of `<place>/<part>.parquet`, "train" or "test"; of another size, some of them resized."""
    images = read_images(find_images(place / f"{part}.parquet"), PREPROCESSING, folder / "images")
    return images if size == PREPROCESSING.height else _resized(images, size, LARGE_IMAGES[part])


def _resized(images: TrainingImages, size: int, count: int) -> TrainingImages:
    """Return the first `count` images of each class of FEW, resized by bicubic interpolation, in memory."""
    chosen = torch.cat([torch.nonzero(images.labels == label).flatten()[:count] for label in FEW])
    parts = [
        functional.interpolate(images.take(part).float(), (size, size), mode="bicubic").round().clamp(0, 255).byte()
        for part in torch.split(chosen, 500)
    ]
    description = f"{images.digest}, {size} pixels, images {chosen.tolist()}"
    return replace(
        images,
        pixels=torch.cat(parts),
        rows=torch.arange(len(chosen)),
        labels=images.labels[chosen],
        preprocessing=replace(images.preprocessing, size=size),
        digest=hashlib.sha256(description.encode()).hexdigest(),
    )


def train_networks(place: Path, folder: Path, at_once: int, names: Iterable[str] = tuple(NETWORKS)) -> None:
    """Train those of `names` that are not trained yet, so many at a time with one thread each; an interrupted one goes
    on."""
    read(place, "train", folder)  # once, before several processes want it
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [name for name in names if not (folder / name / RECORD).exists()]
        for name, record in zip(waiting, pool.map(partial(_train, place, folder), waiting), strict=True):
            print(f"{name}: {record['seconds']:.0f} s, loss {record['final_loss']:.3f}", flush=True)


def _train(place: Path, folder: Path, name: str) -> dict[str, Any]:
    network = NETWORKS[name]
    images = read(place, "train", folder, network.size).of_classes(network.classes)
    run = Run(folder / name)
    if network.compatible_with is not None:
        assert isinstance(network.config, EncoderTraining)
        old = folder / network.compatible_with
        return train_encoder(network.build, images, network.config, run, old).record
    return train_side_information(network.build, images, network.config, run).record


def trained(place: Path, folder: Path, name: str) -> Backbone:
    """Return a network in eval mode, trained first where it is not yet."""
    if not (folder / name / RECORD).exists():
        _train(place, folder, name)
    checkpoint = load_checkpoint(folder / name / CHECKPOINT)
    assert checkpoint is not None, f"{name} is not trained"
    return rebuild_network(checkpoint)


def record(folder: Path, name: str) -> dict[str, Any]:
    """Return a training's record."""
    found: dict[str, Any] = json.loads((folder / name / RECORD).read_text())
    return found
