"""The narrowest h that is as good as the widest."""

import pytest
import torch

from models.training.features import PairedFeatures
from models.training.transformation import TransformationTraining, train_transformation
from models.training.widths import INNER_DIMS, LEAST_ROWS, multiply_adds, narrowest
from models.transformation import LinearMap, Transformation

DIM = 8


def rows(count: int = 400) -> PairedFeatures:
    embedding = torch.randn(count, DIM, generator=torch.Generator().manual_seed(0))
    return PairedFeatures(embedding, None, embedding.clone(), None)


def noisy(noise: float) -> Transformation:
    """A linear map that is the identity but for `noise` in its weights."""
    network = Transformation(DIM, None, DIM, members=None, linear=True)
    assert isinstance(network.linear_map, LinearMap)
    with torch.no_grad():
        weights = torch.eye(DIM) + noise * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))
        network.linear_map.weights.weight.copy_(weights)
        network.linear_map.weights.bias.zero_()
    return network.eval()


def test_the_first_that_is_as_good_as_the_widest_is_taken() -> None:
    candidates = {256: noisy(0.5), 512: noisy(0.001), 1024: noisy(0.5), 2048: noisy(0.0)}

    chosen, found = narrowest(candidates, rows(), unit_norm=False)

    assert chosen == 512
    assert list(found) == ["256", "512", "1024", "2048"]
    assert found["2048"] == {"overlap": 1, "own_item_first": 1, "explained": 1, "multiply_adds": DIM * DIM}
    assert found["256"]["own_item_first"] < found["512"]["own_item_first"]


def test_outputs_that_are_served_at_unit_norm_are_compared_at_unit_norm() -> None:
    shrunk = noisy(0.0)  # right in every direction, but not where items lie
    assert shrunk.linear_map is not None
    with torch.no_grad():
        shrunk.linear_map.weights.weight.mul_(0.5)

    by_place, _ = narrowest({256: shrunk, 2048: noisy(0.0)}, rows(), unit_norm=False)
    by_direction, _ = narrowest({256: shrunk, 2048: noisy(0.0)}, rows(), unit_norm=True)

    assert (by_place, by_direction) == (2048, 256)


def test_an_output_that_is_not_finite_is_never_as_good() -> None:
    broken = noisy(0.0)
    assert broken.linear_map is not None
    with torch.no_grad():
        broken.linear_map.weights.bias.fill_(float("nan"))

    assert narrowest({256: broken, 2048: noisy(0.0)}, rows(), unit_norm=False)[0] == 2048


@pytest.mark.parametrize("members", [1, 2])
def test_auto_trains_every_width_and_keeps_the_one_that_it_chose(members: int) -> None:
    config = TransformationTraining(epochs=2, warm_up_epochs=1, batch=512, inner_dim="auto", members=members)

    fitted = train_transformation(rows(10 * LEAST_ROWS), config)

    compared, chosen = fitted.choices["inner_dims"], fitted.choices["inner_dim"]
    assert list(compared) == [str(inner_dim) for inner_dim in INNER_DIMS]
    assert fitted.network.inner_dim == chosen
    assert compared[str(chosen)]["multiply_adds"] == multiply_adds(fitted.network)


def test_few_rows_cannot_tell_widths_apart_and_take_the_recipes_own() -> None:
    config = TransformationTraining(epochs=1, batch=64, inner_dim="auto")

    choices = train_transformation(rows(200), config).choices

    assert choices["inner_dim"] == 1024
    assert "inner_dims" not in choices


def test_the_papers_recipe_has_no_rows_to_choose_on() -> None:
    config = TransformationTraining(epochs=1, inner_dim="auto", recipe="paper")

    with pytest.raises(ValueError, match="holds no rows out"):
        train_transformation(rows(200), config)
