"""Whether thumbnails are better than h, and for which items: what the references say.

A thumbnail is a smaller image, so φ_new of it is only near φ_new of the image. It replaces what h made where its error
is certainly less on the references: where h expects a larger error than thumbnails have, or, where h expects nothing,
of all items together.
"""

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.domain.backfill.references import KnownItems, known_items
from service.domain.gallery.generations import StoredGeneration
from service.errors import Conflict
from service.index.protocol import Metric, Vectors
from service.networks.backfilling import Draws, score_difference
from service.networks.encoders import Encoders

_LEAST = 20  # references with a thumbnail; fewer tell too little
_DRAWS = Draws(resamples=1_000)


class ThumbnailsUnproven(Conflict):
    """Nothing says that thumbnails are better than h."""


_TOO_FEW = (
    "Nothing tells whether thumbnails are better than h: {count} references have one, and at least {least} are needed."
    " Post images to the upgrade's references."
)
_NOT_BETTER = "On {count} references, φ_new of thumbnails is not certainly nearer to φ_new of the images than h is."


def least_error_of(session: Session, encoders: Encoders, generation: StoredGeneration) -> float | None:
    """Return the error, as h expects it, above which an item's thumbnail is better; None where all thumbnails are.

    Raises `ThumbnailsUnproven` (409).
    """
    known, thumbnails = with_thumbnails(encoders, generation, known_items(session, generation, seed=0))
    if len(known) < _LEAST:
        raise ThumbnailsUnproven(_TOO_FEW.format(count=len(known), least=_LEAST))
    of_thumbnails = _errors(thumbnails, known.encoded, generation.metric)
    of_h = _errors(known.transformed, known.encoded, generation.metric)

    least = float(of_thumbnails.mean())
    expected_worse = np.flatnonzero(known.uncertainty > least)  # NaN is not
    if len(expected_worse) >= _LEAST and _is_less(of_thumbnails[expected_worse], of_h[expected_worse]):
        return least
    if np.isnan(known.uncertainty).all() and _is_less(of_thumbnails, of_h):
        return None
    raise ThumbnailsUnproven(_NOT_BETTER.format(count=len(known)))


def with_thumbnails(encoders: Encoders, generation: StoredGeneration, known: KnownItems) -> tuple[KnownItems, Vectors]:
    """Return the references that have a thumbnail, N of them, and (N, D) what φ_new makes of these."""
    positions = np.array([place for place, data in enumerate(known.thumbnails) if data is not None], np.int64)
    encoder = encoders.get(generation.version)
    thumbnails = [data for data in known.take(positions).thumbnails if data is not None]
    images = [encoders.images.reduce(data, [encoder.preprocessing]) for data in thumbnails]
    if not images:
        return known.take(positions), known.encoded[:0]
    return known.take(positions), encoder.encode(images).embedding


def _errors(found: Vectors, wanted: Vectors, metric: Metric) -> NDArray[np.float64]:
    """(N, D), (N, D) -> (N,) squared errors; of directions where these alone are compared."""
    if metric == "cosine":
        found, wanted = _unit(found), _unit(wanted)
    errors: NDArray[np.float64] = np.square(found - wanted, dtype=np.float64).sum(axis=1)
    return errors


def _unit(values: Vectors) -> Vectors:
    unit: Vectors = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _is_less(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    return score_difference(first, second, None, _DRAWS).low > 0
