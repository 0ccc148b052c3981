"""Unit norm for what networks give. Indexes scale what they store by `service.index.protocol.normalized`, which imports
no `models`, and takes vectors of users too: it sums in float64, where a value above 1e19 has no infinite square."""

import numpy as np
from numpy.typing import NDArray


def l2_normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, D) float32 vectors with unit norm; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
