"""Which vectors can be stored, in one place for what networks give and for what users send.

A vector is refused when it would not be stored as what it is:
- it has a value that is not finite, or too large for the stored dtype;
- storing changes it by more than `TOLERANCE` of its norm. Rounding to float16 changes a vector by at most 0.05 %, but
  values below 6e-5 lose digits there, and those below 3e-8 become zero;
- it is zero, to within float32, where it needs a direction: under cosine distance, and under a model version whose
  embeddings have unit norm.
"""

import numpy as np
from numpy.typing import NDArray

from service.vectors.rows import StoredDtype, Vectors

TOLERANCE = 0.01

_SMALLEST_NORM = 1e-38  # below it, float32 has no room for the digits of a vector's values
_HALF_OF_LEAST_FLOAT16 = 2.0**-25  # what rounding may change of a value that float16 has no full digits for
_REASONS = (
    "",
    "has a value that is not finite in float32",
    "has a value that is too large for float16 (65504)",
    f"is so small that float16 would change it by more than {TOLERANCE:.0%} of its norm; scale it, or store float32",
    "is zero, and so has no direction: cosine distance and unit norm need one",
)
_NOT_FINITE, _TOO_LARGE, _TOO_SMALL, _ZERO = range(1, len(_REASONS))


class NotStorable(ValueError):
    """Some vectors cannot be stored: `rows` are their positions (M,) int64, ascending."""

    def __init__(self, faults: NDArray[np.int8]) -> None:
        self.rows: NDArray[np.int64] = np.flatnonzero(faults).astype(np.int64)
        self._faults = faults
        first = int(self.rows[0])
        super().__init__(f"{len(self.rows)} vectors cannot be stored: that of row {first} {self.reason_of(first)}.")

    def reason_of(self, row: int) -> str:
        """Return what is wrong with the vector of a row: words that follow "the vector"."""
        return _REASONS[self._faults[row]]


def to_storage(values: NDArray[np.float32], dtype: StoredDtype, *, needs_direction: bool = False) -> Vectors:
    """Return (N, D) float32 `values` in the stored dtype. Raises `NotStorable`, which names every row that is not."""
    with np.errstate(over="ignore"):
        stored: Vectors = values.astype(np.float16 if dtype == "float16" else np.float32)
    largest = np.abs(values).max(axis=1, initial=0)  # NaN where there is one
    faults = np.zeros(len(values), np.int8)
    faults[~np.isfinite(stored).all(axis=1)] = _TOO_LARGE
    faults[~np.isfinite(largest)] = _NOT_FINITE

    # Larger ones are changed by less than the tolerance; few are looked at.
    may_change = _HALF_OF_LEAST_FLOAT16 * np.sqrt(values.shape[1]) / (TOLERANCE / 2)
    small = np.flatnonzero((largest < (may_change if dtype == "float16" else _SMALLEST_NORM)) & (faults == 0))
    exact = values[small].astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    changes = np.linalg.norm(stored[small] - exact, axis=1)
    faults[small[changes > TOLERANCE * norms]] = _TOO_SMALL
    if needs_direction:
        faults[small[norms < _SMALLEST_NORM]] = _ZERO

    if faults.any():
        raise NotStorable(faults)
    return stored
