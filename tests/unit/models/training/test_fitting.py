"""Trainings on toy data that they must be able to learn, and the batches and rates that they share."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.backbones import ConvEncoder
from models.losses import nt_xent
from models.metrics import cmc
from models.precision import Precision
from models.preprocessing import preprocess_batch
from models.training.augmentation import contrastive_views
from models.training.checkpoints import CHECKPOINT, load_checkpoint, part_of
from models.training.data import TrainingImages
from models.training.encoder import ClassifierLoss, EncoderTraining, NotCompatible, OldClassifier, train_encoder
from models.training.features import PairedFeatures
from models.training.fitting import IN_MEMORY, Diverged, Run, embed_images, standardized
from models.training.loop import shuffled_batches, warm_up_then_cosine
from models.training.side_information import (
    SIDE_INFORMATION,
    AutoencoderTraining,
    SimclrTraining,
    train_side_information,
)
from models.training.transformation import TransformationTraining, train_transformation
from tests.unit.models.toy_images import PREPROCESSING, cut_at, noise, toy_images


def small_encoder() -> ConvEncoder:
    return ConvEncoder(8, 16)


def retrieval(queries: nn.Module, images: TrainingImages, gallery: nn.Module | None = None) -> float:
    """CMC top-1 of each image's embedding among the other images', which `gallery` may have embedded."""
    labels = images.labels.numpy()
    asked, searched = (embed_images(network, images).numpy() for network in (queries, gallery or queries))
    return cmc(asked, labels, searched, labels, ks=(1,), self_match=True)[1]


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 1024, [3]), (1, 4, [1]), (5, 1, [1, 1, 1, 2])],
)
def test_every_sample_comes_once_and_no_batch_is_left_with_one(count: int, batch: int, sizes: list[int]) -> None:
    batches = list(shuffled_batches(count, batch, torch.Generator().manual_seed(0)))

    assert [len(positions) for positions in batches] == sizes
    assert sorted(int(position) for positions in batches for position in positions) == list(range(count))


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_then_cosine(optimizer, 80, 5)

    rates = []
    for _ in range(80):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * step / 75) for step in range(75)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "learning_rate", "mixup", "precision"),
    [
        ("softmax", 0.1, 0.0, "float32"),
        ("softmax", 0.1, 0.0, "bfloat16"),
        ("softmax", 0.1, 0.4, "float32"),
        ("arcface", 0.02, 0.0, None),
    ],
)
def test_an_encoder_learns_to_tell_classes_apart(
    loss: ClassifierLoss, learning_rate: float, mixup: float, precision: Precision | None
) -> None:
    unseen = toy_images(90, seed=2)
    torch.manual_seed(0)
    untrained = retrieval(small_encoder().eval(), unseen)
    config = EncoderTraining(
        epochs=6,
        warm_up_epochs=1,
        batch=32,
        learning_rate=learning_rate,
        loss=loss,
        mixup=mixup,
        precision=precision,
    )
    seen: list[tuple[int, int]] = []

    trained = train_encoder(
        small_encoder,
        toy_images(193, seed=1),
        config,
        Run(progress=lambda done, total, loss: seen.append((done, total))),
    )

    assert seen[:3] == [(32, 6 * 193), (64, 6 * 193), (96, 6 * 193)]
    assert seen[-1] == (6 * 193, 6 * 193)
    assert not trained.network.training
    assert {parameter.dtype for parameter in trained.network.parameters()} == {torch.float32}
    assert untrained < 0.8
    assert retrieval(trained.network, unseen) > 0.9


@pytest.mark.parametrize(("loss", "learning_rate"), [("softmax", 0.1), ("arcface", 0.02)])
def test_a_compatible_encoder_is_searched_among_the_old_ones_embeddings(
    tmp_path: Path, loss: ClassifierLoss, learning_rate: float
) -> None:
    config = EncoderTraining(
        epochs=8, warm_up_epochs=1, batch=32, learning_rate=learning_rate, loss=loss, precision="float32"
    )
    old = train_encoder(small_encoder, toy_images(192, seed=1, classes=(2, 1)), config, Run(tmp_path))
    images, unseen = toy_images(192, seed=1), toy_images(90, seed=2, classes=(1, 2))
    other_seed = replace(config, seed=5)

    compatible = train_encoder(small_encoder, images, other_seed, compatible_with=tmp_path)
    independent = train_encoder(small_encoder, images, other_seed)

    assert retrieval(compatible.network, unseen) > 0.9
    assert retrieval(compatible.network, unseen, old.network) > 0.9
    assert retrieval(independent.network, unseen, old.network) < 0.8


def test_the_influence_loss_counts_the_images_of_old_classes_only(tmp_path: Path) -> None:
    config = EncoderTraining(epochs=1, label_smoothing=0.0, precision="float32")
    train_encoder(small_encoder, toy_images(64, seed=1, classes=(2, 1)), config, Run(tmp_path))
    checkpoint = load_checkpoint(tmp_path / CHECKPOINT)
    assert checkpoint is not None
    head = part_of(checkpoint, "head")["linear.weight"]  # (2, 16)
    old = OldClassifier(tmp_path, 16, toy_images(6, seed=0), IN_MEMORY)
    embedding = torch.randn(5, 16)

    found = old.influence_loss(embedding, torch.tensor([0, 1, 2, 0, 1]))

    logits = embedding[[1, 2, 4]] @ head.T
    expected = -logits.log_softmax(dim=1)[range(3), [1, 0, 1]].mean()
    assert torch.allclose(found, expected)
    assert float(old.influence_loss(embedding[:1], torch.tensor([0]))) == 0.0


def test_what_cannot_be_compatible_is_refused(tmp_path: Path) -> None:
    config = EncoderTraining(epochs=1, precision="float32")
    images = toy_images(64, seed=1)
    train_encoder(small_encoder, toy_images(64, seed=1, classes=(0,)), config, Run(tmp_path / "old"))
    simclr = SimclrTraining(epochs=1, precision="float32")
    train_side_information(small_encoder, images, simclr, Run(tmp_path / "ψ"))
    with pytest.raises(KeyboardInterrupt):
        train_encoder(small_encoder, images, replace(config, epochs=3), Run(tmp_path / "cut", progress=cut_at(100)))

    for folder, build, new_config, sentence in (
        ("none", small_encoder, config, "no checkpoint"),
        ("ψ", small_encoder, config, "without a classifier"),
        ("cut", small_encoder, config, "has not finished"),
        ("old", lambda: ConvEncoder(8, 12), config, "have 16 dimensions, the new ones 12"),
        ("old", small_encoder, replace(config, mixup=0.2), "Mixup"),
    ):
        with pytest.raises(NotCompatible, match=sentence):
            train_encoder(build, images, new_config, compatible_with=tmp_path / folder)
    with pytest.raises(NotCompatible, match="none of the classes"):
        train_encoder(small_encoder, toy_images(64, seed=1, classes=(1, 2)), config, compatible_with=tmp_path / "old")


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


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    config = EncoderTraining(epochs=30, learning_rate=1e30, warm_up_epochs=0, batch=16, precision="float32")

    with pytest.raises(Diverged, match="epoch 1 the loss became"):
        train_encoder(small_encoder, toy_images(64, seed=1), config)


def test_embedding_gives_what_the_service_would_compute() -> None:
    network = small_encoder().eval()
    image = Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy())
    images = TrainingImages(
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None],
        torch.tensor([0]),
        torch.tensor([0]),
        ["one"],
        PREPROCESSING,
        "",
    )

    with torch.inference_mode():
        expected = network(torch.from_numpy(preprocess_batch([image], PREPROCESSING)))

    assert torch.allclose(embed_images(network, images), expected, atol=1e-5)


@pytest.mark.parametrize("with_side_information", [False, True])
@pytest.mark.parametrize(("count", "batch"), [(257, 64), (40, 1024)])
def test_a_transformation_learns_the_new_space(count: int, batch: int, with_side_information: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, side = torch.randn(count, 6, generator=generator), torch.randn(count, 4, generator=generator)
    target = torch.relu(torch.cat([embedding, side], dim=1) @ torch.randn(10, 5, generator=generator))
    side_information = side if with_side_information else None
    config = TransformationTraining(epochs=60, batch=batch, inner_dim=32, learning_rate=5e-3)
    epochs: list[int] = []

    pairs = PairedFeatures(embedding, side_information, target, None)

    network = train_transformation(pairs, config, lambda done, total: epochs.append(done))

    with torch.inference_mode():
        error = float(nn.functional.mse_loss(network(embedding, side_information), target))
    constant = float((target - target.mean(dim=0)).square().mean())
    assert network.config() == {
        "from_dim": 6,
        "side_information_dim": 4 if with_side_information else None,
        "to_dim": 5,
        "inner_dim": 32,
        "non_negative": True,
        "classes": None,
    }
    assert not network.training
    assert epochs == list(range(1, 61))
    assert error < (0.5 if with_side_information else 0.8) * constant


def test_batch_norm_is_frozen_in_the_second_half() -> None:
    pairs = PairedFeatures(torch.randn(50, 4), None, torch.randn(50, 3), None)

    def batches_seen(epochs: int) -> int:
        config = TransformationTraining(epochs=epochs, batch=25, inner_dim=8)
        return int(train_transformation(pairs, config).state_dict()["mixer.0.1.num_batches_tracked"])

    assert batches_seen(4) == 2 * 2
    assert batches_seen(5) == 2 * 2


def test_the_same_seed_gives_the_same_transformation() -> None:
    pairs = PairedFeatures(torch.randn(50, 4), None, torch.randn(50, 3), None)

    def trained(seed: int) -> Tensor:
        config = TransformationTraining(epochs=2, batch=16, inner_dim=8, seed=seed)
        output: Tensor = train_transformation(pairs, config)(pairs.embedding)
        return output

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_settings_of_the_transformation_are_the_papers() -> None:
    config = TransformationTraining()

    assert (config.epochs, config.warm_up_epochs, config.batch) == (80, 5, 1024)
    assert (config.learning_rate, config.inner_dim) == (5e-4, 2048)
    assert np.log2(config.weight_decay) == -15


def test_one_sample_is_not_enough_to_train_a_transformation() -> None:
    pairs = PairedFeatures(torch.randn(1, 4), None, torch.randn(1, 3), None)

    with pytest.raises(ValueError, match="at least two samples"):
        train_transformation(pairs, TransformationTraining(epochs=2))


def test_an_error_of_the_progress_callback_stops_the_training() -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    pairs = PairedFeatures(torch.randn(8, 4), None, torch.randn(8, 3), None)

    with pytest.raises(Stopped):
        train_transformation(pairs, TransformationTraining(inner_dim=8), stop)
