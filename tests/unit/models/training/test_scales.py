"""Scales: what learned from scaled values gives the same for values as they are, and small values are learned."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.training.features import PairedFeatures
from models.training.scales import fold_scales, scales_of
from models.training.transformation import TransformationTraining, train_transformation
from tests.networks import transformation


def crowded(rows: int = 2_000, deviation: float = 0.02) -> PairedFeatures:
    """Unit-norm vectors close to each other, as ArcFace's are, of which the new ones follow from the old ones."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(rows, 12, generator=generator)
    side = 3 + torch.randn(rows, 5, generator=generator)
    new = torch.tanh(torch.cat([old, side - 3], dim=1) @ torch.randn(17, 16, generator=generator))
    embedding, target = (
        nn.functional.normalize(1 / values.shape[1] ** 0.5 + deviation * values, dim=1) for values in (old, new)
    )
    return PairedFeatures(embedding, side, target, None)


@pytest.mark.parametrize("with_side_information", [False, True])
def test_a_network_that_is_given_its_scales_says_the_same_of_values_as_they_are(with_side_information: bool) -> None:
    pairs = crowded() if with_side_information else replace(crowded(), side_information=None)
    scales = scales_of(pairs)
    network = transformation(12, 5 if with_side_information else None, 16, seed=1)
    side = None if pairs.side_information is None else scales.side_information(pairs.side_information)
    with torch.inference_mode():
        scaled = network(scales.embedding(pairs.embedding), side)

    fold_scales(network, scales)

    with torch.inference_mode():
        found = network(pairs.embedding, pairs.side_information)
    assert torch.allclose(scales.target(found), scaled, rtol=1e-3, atol=1e-3)


def test_scaled_values_have_mean_zero_and_variance_one() -> None:
    pairs = crowded(rows=40_000)

    scaled = scales_of(pairs).target(pairs.target)

    assert torch.allclose(scaled.mean(dim=0), torch.zeros(16), atol=1e-3)
    assert float(scaled.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_a_constant_space_is_not_divided() -> None:
    pairs = replace(crowded(), embedding=torch.full((2_000, 12), 0.25))

    scale = scales_of(pairs).embedding

    assert torch.equal(scale(pairs.embedding), torch.zeros(2_000, 12))


def test_embeddings_that_lie_close_together_are_learned_as_well_as_others() -> None:
    config = TransformationTraining(epochs=20, warm_up_epochs=2, batch=128, inner_dim=64, learning_rate=2e-3)

    def error(pairs: PairedFeatures) -> float:
        network = train_transformation(pairs, config).network
        with torch.inference_mode():
            found = network(pairs.embedding, pairs.side_information)
        return float((found - pairs.target).square().mean() / pairs.target.var(dim=0).mean())

    assert error(crowded(deviation=0.02)) == pytest.approx(error(crowded(deviation=0.2)), rel=0.5)
