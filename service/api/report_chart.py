"""The picture of intervals against limits on a report's page: where its lines are. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.judging.gates import Outcome

_WIDTH, _LEFT, _ROW, _ABOVE, _BELOW = 760, 30, 46, 40, 30
_TICKS = 8
_LONGEST = 90
_ROUNDING = 1e-9
_LEAST_REACH = 0.01  # on either side of the limit, so that intervals of no width have a scale


@dataclass(frozen=True)
class Bar:
    """A gate's interval, in pixels; title: what fits above it, words: what is read aloud."""

    title: str
    words: str
    outcome: Outcome
    y: float
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Tick:
    x: float
    words: str
    is_limit: bool


@dataclass(frozen=True)
class Chart:
    width: int
    height: int
    bars: list[Bar]
    ticks: list[Tick]


# (name, outcome, low, value, high), the last three less the gate's limit.
Measured = tuple[str, Outcome, float, float, float]


def chart_of(measured: Sequence[Measured]) -> Chart | None:
    """Return the picture, all gates on one scale whose 0 is the limit; None without a gate."""
    if not measured:
        return None
    least = min(-_LEAST_REACH, *(low for _, _, low, _, _ in measured))
    most = max(_LEAST_REACH, *(high for *_, high in measured))

    def x(difference: float) -> float:
        return round(_LEFT + (difference - least) / (most - least) * (_WIDTH - 2 * _LEFT), 1)

    bars = []
    for place, (name, outcome, low, value, high) in enumerate(measured):
        words = f"{name}: {_signed(low)} to {_signed(high)} points from the limit."
        bars.append(Bar(_cut(name), words, outcome, _ABOVE + place * _ROW, x(low), x(value), x(high)))
    ticks = [Tick(x(at), _signed(at) if at else "limit", not at) for at in _round_numbers(least, most)]
    return Chart(_WIDTH, _ABOVE + len(measured) * _ROW + _BELOW, bars, ticks)


def _round_numbers(least: float, most: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between two numbers, 0 among them, few enough to be read."""
    rough = (most - least) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(least / step - _ROUNDING), math.floor(most / step + _ROUNDING)
    return [round(place * step, 9) for place in range(first, last + 1)]


def _signed(difference: float) -> str:
    return f"{100 * difference:+.3g}".replace("-", "−")


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
