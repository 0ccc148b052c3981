"""Normalising, in one place."""

import numpy as np
from numpy.typing import NDArray


def l2_normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, D) float32 vectors with unit norm; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
