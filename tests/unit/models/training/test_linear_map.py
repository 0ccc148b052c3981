"""The linear map in closed form, against least squares, and where inputs or members say nothing."""

import numpy as np
import pytest
import torch

from models.training import linear_map
from models.training.features import PairedFeatures
from models.training.linear_map import best_share, fit_linear_map
from models.transformation import LinearMap


def paired(rows: int, views: int = 1, noise: float = 0.1) -> PairedFeatures:
    generator = torch.Generator().manual_seed(0)
    embedding, side = (torch.randn(views * rows, dim, generator=generator) + 3 for dim in (6, 4))
    weights = torch.randn(10, 5, generator=torch.Generator().manual_seed(9))
    target = torch.cat([embedding, side], dim=1) @ weights - 2
    return PairedFeatures(embedding, side, target + noise * torch.randn(target.shape, generator=generator), None, views)


def halves(pairs: PairedFeatures) -> tuple[PairedFeatures, PairedFeatures]:
    count = len(pairs) // 2
    return pairs.take(torch.arange(count)), pairs.take(torch.arange(count, len(pairs))).first_view()


def weights_of(linear: LinearMap) -> np.ndarray:
    return torch.cat([linear.weights.weight.T, linear.weights.bias[None]]).detach().numpy()


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
def test_with_many_pairs_it_is_least_squares_over_all_views(
    views: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_map, "_ROWS_AT_ONCE", rows_at_once)
    learned, held_out = halves(paired(400, views))
    assert learned.side_information is not None
    inputs = torch.cat([learned.embedding, learned.side_information, torch.ones(len(learned.embedding), 1)], dim=1)

    fitted = fit_linear_map(learned, held_out)

    expected = np.linalg.lstsq(inputs.numpy(), learned.target.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weights_of(fitted), expected, atol=0.02)


def test_with_fewer_pairs_than_inputs_it_is_finite_and_errs_less_than_the_mean() -> None:
    learned, held_out = halves(paired(16))
    assert held_out.side_information is not None

    fitted = fit_linear_map(learned, held_out)

    with torch.inference_mode():
        output = fitted(torch.cat([held_out.embedding, held_out.side_information], dim=1))
    of_mean = (held_out.target - learned.target.mean(dim=0)).square().mean()
    assert (output - held_out.target).square().mean() < of_mean


def test_of_inputs_that_are_always_the_same_it_gives_the_mean_target() -> None:
    pairs = paired(200)
    constant = PairedFeatures(torch.full((200, 6), 2.0), None, pairs.target, None)

    fitted = fit_linear_map(*halves(constant))

    with torch.inference_mode():
        output = fitted(torch.full((1, 6), 2.0))
    torch.testing.assert_close(output[0], pairs.target[:100].mean(dim=0))


def test_the_share_is_the_largest_that_errs_hardly_more_than_the_best() -> None:
    target = torch.zeros(50, 3)
    linear = torch.ones(50, 3)

    # Members at -1 and a map at 1 cancel at a half.
    assert best_share(-linear, linear, target) == 0.5
    assert best_share(target, linear, target) == 0.0
    assert best_share(linear, target, target) == 1.0
    assert best_share(1.001 * linear, linear, target) == 1.0


def test_members_that_learned_nothing_finite_are_not_hidden_by_the_map() -> None:
    target = torch.zeros(50, 3)

    assert best_share(torch.full((50, 3), torch.nan), target, target) == 0.0
    assert best_share(torch.full((50, 3), torch.inf), target, target) == 0.0
