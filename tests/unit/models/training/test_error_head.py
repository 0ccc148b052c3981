"""The head is fitted to errors whose expectation is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.training.error_head import fit_error_head


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs of very different scales, one of them constant, the errors that they make expect, and errors."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 0.0]) + 3
    expected = (0.7 * inputs[:, 0] + 0.01 * inputs[:, 1] - 30 * inputs[:, 2] + 86).exp()
    dims = torch.randn(count, 16, generator=generator).square().mean(dim=1)
    return inputs, expected, expected * dims


def test_the_expected_error_of_rows_never_seen_is_what_it_was_drawn_from() -> None:
    inputs, _, errors = drawn(4_000, seed=0)
    others, expected, _ = drawn(1_000, seed=1)

    head = fit_error_head(inputs, errors)

    ratio = (head(others) / expected).log()
    assert abs(float(ratio.mean())) < 0.05
    assert float(ratio.abs().max()) < 0.5


def test_over_the_rows_that_it_was_fitted_on_errors_are_as_large_as_expected() -> None:
    inputs, _, errors = drawn(500, seed=2)

    head = fit_error_head(inputs, errors)

    assert float((errors / head(inputs)).mean()) == pytest.approx(1, abs=1e-3)


def test_inputs_that_say_nothing_leave_the_mean_error() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, errors = torch.randn(300, 40, generator=generator), torch.rand(300, generator=generator) ** 2

    expected = fit_error_head(inputs, errors)(torch.randn(1_000, 40, generator=generator))

    assert float(expected.mean()) == pytest.approx(float(errors.mean()), rel=0.1)
    assert float(expected.log().std()) < 0.2


def test_few_rows_of_tiny_and_of_no_error_give_a_finite_head_and_the_same_one_again() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(7, 30, generator=generator)
    errors = torch.tensor([0.0, 1e-9, 0.0, 1e-9, 2e-9, 0.0, 1e-9])

    first, second = (fit_error_head(inputs, errors)(inputs) for _ in range(2))

    assert bool(first.isfinite().all())
    assert np.array_equal(first.numpy(), second.numpy())
