"""What imported vectors say of how they came about: the columns `origin`, `hops` and `uncertainty`.

Vectors that were upgraded elsewhere come in as `transformed`, with the transformations since their pixels, and perhaps
the error that h expected of them. All others are `imported`: that a vector was `encoded` or `backfilled`, as an export
of another gallery says, is nothing that this service has seen, and what is judged by pixels must not rest on it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.vectors.arrow import BadRows, read_numbers, read_strings
from service.vectors.rows import Origin

_MOST_HOPS = 1_000  # more than anyone chains, and far from what the column holds: upgrades add to it
_KNOWN = [origin.label for origin in Origin]


@dataclass(frozen=True)
class Provenance:
    """origin and hops (N,) int16, uncertainty (N,) float32, as `service.vectors.rows.EmbeddingRows` has them."""

    origin: NDArray[np.int16]
    hops: NDArray[np.int16]
    uncertainty: NDArray[np.float32]


def read_provenance(table: pa.Table) -> Provenance:
    """Return what a table says of its rows; where it says nothing, they are imported.

    Raises `BadRows` (422) naming the rows of an unknown origin, of hops that do not fit its origin (1 and
    more if it was transformed, else 0 or none), or of an uncertainty that is negative or infinite.
    """
    labels = read_strings(table, "origin", nullable=True)
    hops = read_numbers(table, "hops", whole=True)
    uncertainty = read_numbers(table, "uncertainty", whole=False)

    known = np.array([label is None or label in _KNOWN for label in labels])
    _refuse(~known, f"has an unknown origin; known are {', '.join(_KNOWN)}")
    transformed = np.array([label == Origin.TRANSFORMED.label for label in labels])
    _refuse(
        transformed & ~((hops >= 1) & (hops <= _MOST_HOPS)),
        f"is transformed: its hops are the transformations since its pixels, 1 to {_MOST_HOPS}",
    )
    _refuse(~transformed & ~np.isnan(hops) & (hops != 0), "has hops, which only an origin of 'transformed' has")
    _refuse(transformed & ((uncertainty < 0) | np.isinf(uncertainty)), "has an uncertainty that no squared error is")

    with np.errstate(over="ignore"):  # a double that overflows is no error that anyone measured
        stored = np.where(transformed, uncertainty, 0).astype(np.float32)
    _refuse(np.isinf(stored), "has an uncertainty that is too large for float32")
    return Provenance(
        np.where(transformed, Origin.TRANSFORMED, Origin.IMPORTED).astype(np.int16),
        np.where(transformed, hops, 0).astype(np.int16),
        stored,
    )


def _refuse(bad: NDArray[np.bool_], why: str) -> None:
    if bad.any():
        raise BadRows([(int(row), f"It {why}.") for row in np.flatnonzero(bad)])
