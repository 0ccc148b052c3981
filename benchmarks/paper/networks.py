"""Every φ and ψ of the tables: how each is trained, and training them, several at a time."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.backbones import Backbone, ConvEncoder, SmallResNet
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


@dataclass(frozen=True)
class Network:
    """A network of the tables. It learns from the first `classes` classes by index."""

    build: Callable[[], Backbone]
    classes: int
    config: SideInformationTraining
    compatible_with: str | None = None


# The most wanted first: the tables can be begun when they are there.
NETWORKS: dict[str, Network] = {
    "old": Network(_SMALL, 50, _PHI(seed=0)),
    "new": Network(_SMALL, 100, _PHI(seed=1)),
    "simclr": Network(_SMALL, 50, _SIMCLR(seed=2)),
    "alternate": Network(_SMALL, 50, _PHI(seed=3)),
    "first": Network(_SMALL, 25, _PHI(seed=4)),
    "first-simclr": Network(_SMALL, 25, _SIMCLR(seed=5)),
    "new-bct": Network(_SMALL, 100, _PHI(seed=1), compatible_with="old"),
    "alternate-mixup": Network(_SMALL, 50, _PHI(seed=3, mixup=1.0)),
    "autoencoder": Network(_SMALL, 50, AutoencoderTraining(epochs=10, seed=6, precision="bfloat16")),
    "old-conv": Network(partial(ConvEncoder, 24, 128), 50, _PHI(seed=7)),
    "old-64": Network(partial(SmallResNet, 32, 1, 64, 2), 50, _PHI(seed=8)),
    "old-arcface": Network(_SMALL, 50, _PHI(seed=0, loss="arcface", learning_rate=0.1)),
    "new-arcface": Network(_SMALL, 100, _PHI(seed=1, loss="arcface", learning_rate=0.1)),
}


def read(place: Path, part: str, folder: Path) -> TrainingImages:
    """Return the images of `<place>/<part>.parquet`, "train" or "test"."""
    return read_images(find_images(place / f"{part}.parquet"), PREPROCESSING, folder / "images")


def train_networks(place: Path, folder: Path, at_once: int) -> None:
    """Train what is not trained yet, `at_once` networks at a time with one thread each; an interrupted one goes on."""
    read(place, "train", folder)  # once, before several processes want it
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [name for name in NETWORKS if not (folder / name / RECORD).exists()]
        for name, record in zip(waiting, pool.map(partial(_train, place, folder), waiting), strict=True):
            print(f"{name}: {record['seconds']:.0f} s, loss {record['final_loss']:.3f}", flush=True)


def _train(place: Path, folder: Path, name: str) -> dict[str, Any]:
    network = NETWORKS[name]
    images = read(place, "train", folder).of_classes(range(network.classes))
    run = Run(folder / name)
    if network.compatible_with is not None:
        assert isinstance(network.config, EncoderTraining)
        old = folder / network.compatible_with
        return train_encoder(network.build, images, network.config, run, old).record
    return train_side_information(network.build, images, network.config, run).record


def trained(folder: Path, name: str) -> Backbone:
    """Return a trained network, in eval mode."""
    checkpoint = load_checkpoint(folder / name / CHECKPOINT)
    assert checkpoint is not None, f"{name} is not trained"
    return rebuild_network(checkpoint)


def record(folder: Path, name: str) -> dict[str, Any]:
    """Return a training's record."""
    found: dict[str, Any] = json.loads((folder / name / RECORD).read_text())
    return found
