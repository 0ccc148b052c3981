"""Trainings of φ on toy data that they must be able to learn."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.backbones import ConvEncoder
from models.precision import Precision
from models.training.checkpoints import CHECKPOINT, load_checkpoint, part_of
from models.training.encoder import ClassifierLoss, EncoderTraining, NotCompatible, OldClassifier, train_encoder
from models.training.fitting import IN_MEMORY, Run
from models.training.side_information import (
    SimclrTraining,
    train_side_information,
)
from tests.unit.models.training.toy_images import cut_at, retrieval, small_encoder, toy_images


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
