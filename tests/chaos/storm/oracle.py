"""What readers must see: a plain dictionary of what was acknowledged, per item.

A write that failed without an answer that says so leaves its item open: the old or the new value is right, until a
later write of the item is acknowledged. Each item has one writer, so the order of its writes is known.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.storm.values import Write

Value = Write | None  # None: there is no such item


@dataclass
class Record:
    """`candidates`: what a reader may see now, since `settled_at` if it is one value. `ever`: every write tried."""

    candidates: tuple[Value, ...] = (None,)
    ever: tuple[Write, ...] = ()
    settled_at: float = 0.0

    @property
    def is_live(self) -> bool:
        return None not in self.candidates

    @property
    def is_absent(self) -> bool:
        return self.candidates == (None,)


class Violations:
    """What must not be; printed with the seed as it is found."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self.found: list[str] = []

    def add(self, sentence: str) -> None:
        with self._lock:
            self.found.append(sentence)
            if len(self.found) <= 20:
                print(
                    f"VIOLATION (seed {self._seed}, second {time.monotonic() - self._started:.1f}): {sentence}",
                    flush=True,
                )


@dataclass
class Oracle:
    """All items by id. A write is begun before it is sent, and then acknowledged, refused or left open."""

    records: dict[str, Record] = field(default_factory=dict)

    def copy(self) -> "Oracle":
        return Oracle({id_: Record(r.candidates, r.ever) for id_, r in self.records.items()})

    def begin(self, writes: Iterable[tuple[str, Value]]) -> None:
        for id_, value in writes:
            record = self.records.setdefault(id_, Record())
            if value is not None:
                record.ever = (*record.ever, value)
            record.candidates = (*record.candidates, value)

    def acknowledge(self, writes: Iterable[tuple[str, Value]]) -> None:
        for id_, value in writes:
            record = self.records[id_]
            record.settled_at = time.monotonic()
            record.candidates = (value,)

    def refuse(self, writes: Sequence[tuple[str, Value]]) -> None:
        """The service said that nothing was written: what `begin` added goes."""
        for id_, _ in writes:
            record = self.records[id_]
            record.candidates = record.candidates[:-1]
