"""The door to the mathematics of backfills: curves, and whether one error is certainly less than another."""

from models.judging.backfilling import Items, area, curve_scores, gains, has_classes, knee_of, largest_first, shares
from models.judging.intervals import Draws, Interval, score_difference

__all__ = [
    "Draws",
    "Interval",
    "Items",
    "area",
    "curve_scores",
    "gains",
    "has_classes",
    "knee_of",
    "largest_first",
    "score_difference",
    "shares",
]
