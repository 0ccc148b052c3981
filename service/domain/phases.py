"""How far long work is: the records, and the one rule that gives a phase its estimate."""

from dataclasses import dataclass

from service.json_records import JsonRecord


@dataclass(frozen=True)
class Phase(JsonRecord):
    """A part of long work. `rate` is in units per second; it and the estimate are None where nothing can be told."""

    done: int
    total: int
    unit: str
    rate: float | None = None
    eta_seconds: float | None = None


def rate_of(count: float, seconds: float) -> float | None:
    """Return how many there were per second."""
    return count / seconds if seconds > 0 else None


def phase_of(
    done: int, total: int, unit: str, rate: float | None = None, *, since_seconds: float = 0.0, moving: bool = True
) -> Phase:
    """Return a phase of which `done` was counted `since_seconds` ago. What rests has no estimate, unless it is done."""
    eta_seconds = max(0.0, (total - done) / rate - since_seconds) if rate and moving else None
    return Phase(done, total, unit, rate, 0.0 if done >= total else eta_seconds)
