"""Trainings on toy data that they must be able to learn, and the batches and rates that they share."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.backbones import ConvEncoder
from models.losses import nt_xent
from models.metrics import cmc
from models.training.augmentation import contrastive_views, light_views, view
from models.training.encoder import EncoderTraining, train_encoder
from models.training.loop import shuffled_batches, warm_up_then_cosine
from models.training.simclr import SimclrTraining, train_simclr
from models.training.transformation import TransformationTraining, train_transformation


def striped_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3, 12, 12) in [0, 1] with noise, and labels: horizontal stripes, vertical stripes, or a checkerboard."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    patterns = torch.stack([(y // 2) % 2, (x // 2) % 2, (x // 2 + y // 2) % 2]).float()
    images = patterns[labels][:, None].repeat(1, 3, 1, 1)
    return (0.4 * images + 0.6 * torch.rand(images.shape, generator=generator)), labels


def normalize(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


def retrieval(encoder: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        embedding = encoder.eval()(normalize(images)).numpy()
    return cmc(embedding, labels.numpy(), embedding, labels.numpy(), ks=(1,), self_match=True)[1]


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


@pytest.mark.parametrize("flip", [False, True])
def test_views_keep_the_shape_and_differ(flip: bool) -> None:
    images, _ = striped_images(6, seed=0)

    for augment in (light_views(12, flip=flip), contrastive_views(12, flip=flip)):
        first, second = view(augment, images), view(augment, images)
        assert first.shape == images.shape
        assert torch.isfinite(first).all()
        assert not torch.equal(first, second)


def test_an_encoder_learns_to_tell_classes_apart() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(8, 16)
    images, labels = striped_images(193, seed=1)
    unseen = striped_images(90, seed=2)
    untrained = retrieval(encoder, *unseen)
    seen_progress: list[tuple[int, int]] = []

    train_encoder(
        encoder,
        16,
        images,
        labels,
        normalize,
        EncoderTraining(epochs=6, warm_up_epochs=1, batch=32),
        lambda done, total: seen_progress.append((done, total)),
    )

    assert seen_progress == [(epoch, 6) for epoch in range(1, 7)]
    assert not encoder.training
    assert retrieval(encoder, *unseen) > max(0.9, untrained)


def test_simclr_brings_views_of_one_image_together_without_labels() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(8, 16)
    images, _ = striped_images(129, seed=1)
    unseen, _ = striped_images(64, seed=2)
    augment = contrastive_views(12, flip=True)
    first, second = view(augment, unseen), view(augment, unseen)

    def loss() -> float:
        with torch.inference_mode():
            return float(nt_xent(encoder.eval()(normalize(first)), encoder(normalize(second)), 0.2))

    untrained = loss()
    train_simclr(encoder, 16, images, normalize, SimclrTraining(epochs=8, batch=64, learning_rate=3e-3))

    assert loss() < untrained
    assert not encoder.training


@pytest.mark.parametrize("with_side_information", [False, True])
@pytest.mark.parametrize(("count", "batch"), [(257, 64), (40, 1024)])
def test_a_transformation_learns_the_new_space(count: int, batch: int, with_side_information: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, side = torch.randn(count, 6, generator=generator), torch.randn(count, 4, generator=generator)
    target = torch.relu(torch.cat([embedding, side], dim=1) @ torch.randn(10, 5, generator=generator))
    side_information = side if with_side_information else None
    config = TransformationTraining(epochs=60, batch=batch, inner_dim=32, learning_rate=5e-3)
    epochs: list[int] = []

    network = train_transformation(embedding, side_information, target, config, lambda done, total: epochs.append(done))

    with torch.inference_mode():
        error = float(nn.functional.mse_loss(network(embedding, side_information), target))
    constant = float((target - target.mean(dim=0)).square().mean())
    assert network.config() == {
        "from_dim": 6,
        "side_information_dim": 4 if with_side_information else None,
        "to_dim": 5,
        "inner_dim": 32,
    }
    assert not network.training
    assert epochs == list(range(1, 61))
    assert error < (0.5 if with_side_information else 0.8) * constant


def test_batch_norm_is_frozen_in_the_second_half() -> None:
    embedding, target = torch.randn(50, 4), torch.randn(50, 3)

    def batches_seen(epochs: int) -> int:
        config = TransformationTraining(epochs=epochs, batch=25, inner_dim=8)
        return int(train_transformation(embedding, None, target, config).state_dict()["mixer.0.1.num_batches_tracked"])

    assert batches_seen(4) == 2 * 2
    assert batches_seen(5) == 2 * 2


def test_the_same_seed_gives_the_same_transformation() -> None:
    embedding, target = torch.randn(50, 4), torch.randn(50, 3)

    def trained(seed: int) -> Tensor:
        config = TransformationTraining(epochs=2, batch=16, inner_dim=8, seed=seed)
        output: Tensor = train_transformation(embedding, None, target, config)(embedding)
        return output

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_settings_of_the_transformation_are_the_papers() -> None:
    config = TransformationTraining()

    assert (config.epochs, config.warm_up_epochs, config.batch) == (80, 5, 1024)
    assert (config.learning_rate, config.inner_dim) == (5e-4, 2048)
    assert np.log2(config.weight_decay) == -15


def test_one_sample_is_not_enough_to_train_a_transformation() -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        train_transformation(torch.randn(1, 4), None, torch.randn(1, 3), TransformationTraining(epochs=2))


def test_an_error_of_the_progress_callback_stops_the_training() -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train_transformation(torch.randn(8, 4), None, torch.randn(8, 3), TransformationTraining(inner_dim=8), stop)
