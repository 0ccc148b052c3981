"""How far a row moves towards the mean of its neighbours."""

import numpy as np

from service.domain.upgrade.smoothing import smoothed

OWN = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
MEANS = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)


def test_a_row_becomes_its_share_of_itself_and_of_the_mean() -> None:
    moved = smoothed(OWN, MEANS, 0.25, "l2", normalize=False)

    np.testing.assert_allclose(moved, [[2.5, 3.0], [0.15, 1.7]], rtol=1e-6)


def test_under_cosine_a_mean_of_unit_norm_counts_as_much_as_the_row() -> None:
    moved = smoothed(OWN, MEANS, 0.5, "cosine", normalize=False)

    np.testing.assert_allclose(moved, [[4.0, 2.0], [0.6, 1.8]], rtol=1e-6)


def test_rows_of_a_version_that_normalises_have_unit_norm() -> None:
    moved = smoothed(OWN / np.linalg.norm(OWN, axis=1, keepdims=True), MEANS, 0.6, "l2", normalize=True)

    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, rtol=1e-6)


def test_a_row_without_neighbours_stays() -> None:
    moved = smoothed(OWN, np.full_like(MEANS, np.nan), 0.9, "l2", normalize=False)

    assert (moved == OWN).all()


def test_rows_that_cancel_are_zero_and_no_error() -> None:
    moved = smoothed(OWN[:1], -OWN[:1], 0.5, "l2", normalize=True)

    assert (moved == 0).all()
