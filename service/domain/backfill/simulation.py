"""What a backfill would be worth, played through on the references: the curve of each order, and the best of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.domain.backfill.references import KnownItems, known_items
from service.domain.backfill.thumbnails import with_thumbnails
from service.domain.gallery.generations import StoredGeneration
from service.json_records import JsonRecord
from service.networks.backfilling import (
    Draws,
    Interval,
    Items,
    area,
    curve_scores,
    gains,
    has_classes,
    knee_of,
    largest_first,
    shares,
)
from service.networks.encoders import Encoders
from service.tables import BackfillOrder, BackfillSource

_LEAST = 20  # references; fewer tell too little
_MEASURED_IMAGES = 8
_RESAMPLES = 1_000


@dataclass(frozen=True)
class CurvePoint:
    """What answers gain when a share of all that are worth it is done, between which bounds that is with 95 %
    confidence, and the seconds that it takes one worker that need not wait for images."""

    share: float
    gain: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Simulation(JsonRecord):
    """measure: `cmc_at_1` or `overlap_at_10` with a gallery that was encoded anew, None without references enough;
    orders: the area under each order's curve; curve and knee: of the best order; reason: how it was found."""

    references: int
    measure: str | None
    order: BackfillOrder | None
    orders: dict[str, float]
    curve: list[CurvePoint]
    knee: float | None
    seconds_per_item: float
    reason: str


def simulate(
    session: Session,
    encoders: Encoders,
    generation: StoredGeneration,
    orders: Sequence[BackfillOrder],
    candidates: int,
    source: BackfillSource,
    seed: int,
) -> Simulation:
    """Play the orders through on the references, and take the one whose curve has the largest area."""
    known = known_items(session, generation, seed)
    again = known.encoded
    if source == "thumbnails":
        known, again = with_thumbnails(encoders, generation, known)
    seconds = _seconds_per_item(encoders, generation)
    if len(known) < _LEAST:
        reason = f"{len(known)} references have a row of h, and at least {_LEAST} are needed to tell orders apart."
        return Simulation(len(known), None, None, {}, [], None, seconds, reason)

    items = Items(known.encoded, known.transformed, again, known.labels)
    scores = {order: curve_scores(items, _positions(known, order, seed), generation.metric) for order in orders}
    areas = {order: area(found) for order, found in scores.items()}
    best = max(areas, key=lambda order: areas[order])  # of equals, the first that was asked for
    intervals = gains(scores[best], known.labels, Draws(seed, _RESAMPLES))
    return Simulation(
        references=len(known),
        measure="cmc_at_1" if has_classes(items) else "overlap_at_10",
        order=best,
        orders={str(order): value for order, value in areas.items()},
        curve=_points(intervals, candidates * seconds),
        knee=knee_of(intervals),
        seconds_per_item=seconds,
        reason=f"Played through on {len(known)} references; the area under its curve is the largest.",
    )


def _positions(known: KnownItems, order: BackfillOrder, seed: int) -> NDArray[np.int64]:
    """Return (N,) positions of the references by an order."""
    drawn = np.random.default_rng(seed).permutation(len(known))
    if order == "random":
        return drawn
    values = known.uncertainty if order == "uncertainty" else known.found
    return drawn[largest_first(values[drawn])]


def _points(intervals: Sequence[Interval], all_seconds: float) -> list[CurvePoint]:
    return [
        CurvePoint(float(share), point.value, point.low, point.high, float(share) * all_seconds)
        for share, point in zip(shares(), intervals, strict=True)
    ]


def _seconds_per_item(encoders: Encoders, generation: StoredGeneration) -> float:
    """Return how long the generation's encoders take here for an image, by a short measured run on blank ones."""
    encoder = encoders.get(generation.version)
    images = [encoders.images.blank(encoder.preprocessing)] * _MEASURED_IMAGES
    encoder.encode(images)  # the first run is slower than the others
    began = time.monotonic()
    encoder.encode(images)
    return (time.monotonic() - began) / _MEASURED_IMAGES
