"""The linear map that references answer themselves: by rows that it was not fitted on."""

import numpy as np
import pytest

from models.judging.linear_floor import cross_fitted

GENERATOR = np.random.default_rng(0)
OLD = GENERATOR.standard_normal((400, 6), np.float32)
SIDE = GENERATOR.standard_normal((400, 3), np.float32)


def test_a_linear_relation_is_found_with_its_side_information() -> None:
    target = (np.hstack([OLD, SIDE]) @ GENERATOR.standard_normal((9, 5)) + 2).astype(np.float32)

    with_side, without = cross_fitted(OLD, SIDE, target), cross_fitted(OLD, None, target)

    np.testing.assert_allclose(with_side, target, atol=1e-3)
    assert np.square(without - target).mean() > 0.5


def test_no_reference_is_answered_by_what_was_fitted_on_it() -> None:
    """Where there is nothing to learn, more inputs than rows could still repeat what they were fitted on."""
    inputs, noise = GENERATOR.standard_normal((60, 80), np.float32), GENERATOR.standard_normal((60, 4), np.float32)

    found = cross_fitted(inputs, None, noise)

    assert np.square(found - noise).mean() > 0.9 * np.square(noise - noise.mean(axis=0)).mean()


def test_the_seed_repeats_and_too_few_rows_are_an_error() -> None:
    target = OLD[:, :2].copy()

    np.testing.assert_array_equal(cross_fitted(OLD, None, target, 3), cross_fitted(OLD, None, target, 3))
    with pytest.raises(ValueError, match="too few"):
        cross_fitted(OLD[:9], None, target[:9])
