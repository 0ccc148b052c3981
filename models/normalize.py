"""Unit norm for what networks give. Indexes scale what they store by `service.index.protocol.normalized`, which imports
no `models`."""

import numpy as np
from numpy.typing import NDArray


def l2_normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, D) float32 vectors with unit norm; zero vectors stay zero."""
    # Summed in float64: squares of values above 1e19, or below 1e-19, have no place in float32.
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(norms == 0, 1, norms)[:, None]).astype(np.float32)
