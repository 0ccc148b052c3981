"""Trainings of h on toy data that they must be able to learn."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.training.features import PairedFeatures
from models.training.transformation import TransformationTraining, train_transformation


@pytest.mark.parametrize("with_side_information", [False, True])
@pytest.mark.parametrize(("count", "batch"), [(257, 64), (40, 1024)])
def test_a_transformation_learns_the_new_space(count: int, batch: int, with_side_information: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, side = torch.randn(count, 6, generator=generator), torch.randn(count, 4, generator=generator)
    target = torch.relu(torch.cat([embedding, side], dim=1) @ torch.randn(10, 5, generator=generator))
    side_information = side if with_side_information else None
    config = TransformationTraining(epochs=60, batch=batch, inner_dim=32, learning_rate=5e-3)
    epochs: list[int] = []
    losses: list[float] = []

    pairs = PairedFeatures(embedding, side_information, target, None)

    def progress(done: int, total: int, of_epochs: Sequence[float]) -> None:
        assert (total, len(of_epochs)) == (60, done)
        epochs.append(done)
        losses[:] = of_epochs

    network = train_transformation(pairs, config, progress).network

    with torch.inference_mode():
        error = float(nn.functional.mse_loss(network(embedding, side_information), target))
    constant = float((target - target.mean(dim=0)).square().mean())
    config_of_members = {"members": network.config()["members"]}  # none where the linear map is all of it
    assert network.config() == config_of_members | {
        "from_dim": 6,
        "side_information_dim": 4 if with_side_information else None,
        "to_dim": 5,
        "inner_dim": 32,
        "non_negative": True,
        "classes": None,
        "linear": True,
        "error_head": False,
    }
    assert not network.training
    assert epochs == list(range(1, 61))
    # Of targets scaled to a variance of 1: about that before anything is learned, and a part of it at the end.
    assert 0.5 < losses[0] < 2
    assert losses[-1] < 0.8 * losses[0]
    assert error < (0.5 if with_side_information else 0.8) * constant


def test_batch_norm_is_frozen_in_the_second_half() -> None:
    pairs = PairedFeatures(torch.randn(50, 4), None, torch.randn(50, 3), None)

    def batches_seen(epochs: int) -> int:
        config = TransformationTraining(epochs=epochs, batch=25, inner_dim=8, recipe="paper")
        return int(train_transformation(pairs, config).network.state_dict()["members.0.mixer.0.1.num_batches_tracked"])

    assert batches_seen(4) == 2 * 2
    assert batches_seen(5) == 2 * 2


def test_the_same_seed_gives_the_same_transformation() -> None:
    pairs = PairedFeatures(torch.randn(50, 4), None, torch.randn(50, 3), None)

    def trained(seed: int) -> Tensor:
        config = TransformationTraining(epochs=2, batch=16, inner_dim=8, seed=seed)
        output: Tensor = train_transformation(pairs, config).network(pairs.embedding)
        return output

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_settings_of_the_transformation_are_the_papers() -> None:
    config = TransformationTraining(recipe="paper", epochs=1)
    pairs = PairedFeatures(torch.randn(8, 2), None, torch.randn(8, 2), None)

    shape = train_transformation(pairs, config).network.config()

    assert (TransformationTraining().epochs, config.warm_up_epochs, config.batch) == (80, 5, 1024)
    assert (config.learning_rate, shape["inner_dim"], shape["members"]) == (5e-4, 2048, 1)
    assert np.log2(config.weight_decay) == -15


def test_one_sample_is_not_enough_to_train_a_transformation() -> None:
    pairs = PairedFeatures(torch.randn(1, 4), None, torch.randn(1, 3), None)

    with pytest.raises(ValueError, match="at least two samples"):
        train_transformation(pairs, TransformationTraining(epochs=2))


def test_an_error_of_the_progress_callback_stops_the_training() -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int, losses: Sequence[float]) -> None:
        raise Stopped

    pairs = PairedFeatures(torch.randn(8, 4), None, torch.randn(8, 3), None)

    with pytest.raises(Stopped):
        train_transformation(pairs, TransformationTraining(inner_dim=8), stop)


def uneven_pairs(count: int, seed: int) -> tuple[PairedFeatures, Tensor]:
    """Return pairs whose targets are as noisy as the embedding's second number says, and each item's expected error."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(count, 6, generator=generator)
    scale = torch.exp(embedding[:, 1:2] / 2 - 1)
    noise = scale * torch.randn(count, 4, generator=generator)
    return PairedFeatures(embedding, None, embedding[:, 1:5] + noise, None), 4 * scale[:, 0].square()


def test_the_default_recipe_says_of_items_never_seen_which_error_to_expect() -> None:
    pairs, _ = uneven_pairs(4_000, seed=0)
    others, due = uneven_pairs(1_000, seed=1)
    config = TransformationTraining(epochs=8, batch=256, inner_dim=32)

    network = train_transformation(pairs, config, with_uncertainty=True).network

    with torch.inference_mode():
        output, expected = network.with_uncertainty(others.embedding)
    assert expected is not None
    errors = (output - others.target).square().sum(dim=1)
    assert float(expected.mean()) == pytest.approx(float(errors.mean()), rel=0.25)
    ranks = torch.stack([values.argsort().argsort().double() for values in (expected, due)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9


def test_where_outputs_are_served_with_unit_norm_the_error_is_that_of_unit_vectors() -> None:
    pairs, _ = uneven_pairs(2_000, seed=0)
    unit = PairedFeatures(pairs.embedding, None, nn.functional.normalize(pairs.target), None)
    config = TransformationTraining(epochs=4, batch=256, inner_dim=16)

    network = train_transformation(unit, config, with_uncertainty=True, unit_norm=True).network

    others, _ = uneven_pairs(2_000, seed=1)
    with torch.inference_mode():
        output, expected = network.with_uncertainty(others.embedding)
    assert expected is not None
    target = nn.functional.normalize(others.target)
    errors, raw = ((values - target).square().sum(dim=1) for values in (nn.functional.normalize(output), output))
    assert float((errors / expected).mean()) == pytest.approx(1, abs=0.25)
    assert float((raw / expected).mean()) > 1.5


def test_nothing_is_said_of_errors_in_the_papers_recipe_nor_where_none_is_made_nor_unless_asked() -> None:
    pairs, _ = uneven_pairs(200, seed=0)
    constant = PairedFeatures(pairs.embedding, None, torch.zeros(200, 4), None)
    default = TransformationTraining(epochs=1, inner_dim=8)
    paper = TransformationTraining(epochs=1, inner_dim=8, recipe="paper")

    def says(pairs: PairedFeatures, config: TransformationTraining, with_uncertainty: bool = True) -> bool:
        network = train_transformation(pairs, config, with_uncertainty=with_uncertainty).network
        return network.with_uncertainty(pairs.embedding)[1] is not None

    assert says(pairs, default)
    assert not says(pairs, default, with_uncertainty=False)
    assert not says(pairs, paper)
    assert not says(constant, default)
