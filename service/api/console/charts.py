"""Where the lines of a chart run. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.backfill.simulation import CurvePoint

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 260, 64, 16, 40


@dataclass(frozen=True)
class CurveChart:
    """A line with the band of its bounds, as points of SVG; `rows` and `columns` are (place, value) of its grid."""

    width: int
    height: int
    line: str
    band: str
    rows: list[tuple[float, float]]
    columns: list[tuple[float, float]]


@dataclass(frozen=True)
class LossChart:
    """A line of losses, as points of SVG; `rows` are (place, value) of its grid."""

    width: int
    height: int
    line: str
    rows: list[tuple[float, float]]


def loss_chart(losses: Sequence[float]) -> LossChart | None:
    """Return the course of a loss over its epochs, from zero up; None of fewer than two."""
    if len(losses) < 2:
        return None
    most = max(losses) or 1.0

    def y(loss: float) -> float:
        return round(_TOP + (most - loss) / most * (_HEIGHT - _TOP - _BOTTOM), 1)

    step = (_WIDTH - _LEFT - 10) / (len(losses) - 1)
    line = " ".join(f"{round(_LEFT + step * number, 1)},{y(loss)}" for number, loss in enumerate(losses))
    return LossChart(_WIDTH, _HEIGHT, line, [(y(value), value) for value in sorted({0.0, losses[-1], most})])


def curve_chart(curve: Sequence[CurvePoint]) -> CurveChart | None:
    """Return what a backfill gains by its share; None of fewer than two points."""
    if len(curve) < 2:
        return None
    least = min(0.0, *(point.low for point in curve))
    most = max(0.0, *(point.high for point in curve))
    span = (most - least) or 1.0

    def x(share: float) -> float:
        return round(_LEFT + share * (_WIDTH - _LEFT - 10), 1)

    def y(gain: float) -> float:
        return round(_TOP + (most - gain) / span * (_HEIGHT - _TOP - _BOTTOM), 1)

    def points(pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x(share)},{y(gain)}" for share, gain in pairs)

    lows = [(point.share, point.low) for point in curve]
    highs = [(point.share, point.high) for point in reversed(curve)]
    return CurveChart(
        _WIDTH,
        _HEIGHT,
        points([(point.share, point.gain) for point in curve]),
        points([*lows, *highs]),
        [(y(gain), gain) for gain in sorted({least, 0.0, most})],
        [(x(share), share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )
