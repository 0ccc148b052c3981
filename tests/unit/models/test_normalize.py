"""Unit norms."""

import numpy as np

from models.normalize import l2_normalize


def test_normalizing_gives_unit_norms_and_leaves_zeros() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-20, 0.0], [1e18, 1e18]], np.float32)

    normalized = l2_normalize(vectors)

    assert normalized.dtype == np.float32
    assert np.allclose(normalized, [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    assert l2_normalize(vectors[:0]).shape == (0, 2)
