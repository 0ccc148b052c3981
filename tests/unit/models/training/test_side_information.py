"""Trainings of ψ on toy data that they must be able to learn."""

from dataclasses import replace

import torch
from torch import nn

from models.losses import nt_xent
from models.training.augmentation import contrastive_views
from models.training.encoder import EncoderTraining
from models.training.fitting import embed_images, standardized
from models.training.side_information import (
    SIDE_INFORMATION,
    AutoencoderTraining,
    SimclrTraining,
    train_side_information,
)
from tests.unit.models.training.toy_images import PREPROCESSING, retrieval, small_encoder, toy_images


def test_simclr_brings_views_of_one_image_together_without_labels() -> None:
    unseen = toy_images(64, seed=2)
    images = replace(toy_images(129, seed=1), labels=torch.zeros(129, dtype=torch.int64))
    views = [replace(unseen, pixels=contrastive_views(unseen.pixels, flip=True)) for _ in range(2)]

    def loss(network: nn.Module) -> float:
        first, second = (embed_images(network, view) for view in views)
        return float(nt_xent(first, second, 0.2))

    torch.manual_seed(0)
    untrained = loss(small_encoder().eval())
    config = SimclrTraining(epochs=8, batch=64, learning_rate=3e-3, precision="float32")
    trained = train_side_information(small_encoder, images, config)

    assert loss(trained.network) < untrained
    assert not trained.network.training


def test_an_autoencoders_side_information_tells_what_an_image_looks_like() -> None:
    images = toy_images(192, seed=1)
    constant = float(standardized(images.pixels, PREPROCESSING).var())
    config = AutoencoderTraining(epochs=12, batch=32, learning_rate=3e-3, flip=False, precision="float32")

    trained = train_side_information(small_encoder, images, config)

    assert trained.record["final_loss"] < 0.95 * constant
    assert retrieval(trained.network, toy_images(90, seed=2)) > 0.9


def test_each_kind_of_side_information_is_trained_as_the_table_says() -> None:
    assert list(SIDE_INFORMATION) == ["simclr", "autoencoder", "alternate", "alternate-mixup"]

    kinds = {}
    for kind, config in SIDE_INFORMATION.items():
        quick = replace(config, epochs=1, warm_up_epochs=0, precision="float32")
        trained = train_side_information(small_encoder, toy_images(66, seed=1), quick)
        assert trained.network.config() == small_encoder().config()
        kinds[kind] = (trained.record["training"]["kind"], trained.record["training"].get("mixup", 0) > 0)

    assert kinds == {
        "simclr": ("SimclrTraining", False),
        "autoencoder": ("AutoencoderTraining", False),
        "alternate": ("EncoderTraining", False),
        "alternate-mixup": ("EncoderTraining", True),
    }
    assert SIDE_INFORMATION["alternate"].seed != EncoderTraining().seed
