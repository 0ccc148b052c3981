"""How many files go into one request, learned from how long the answers took."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_FIRST = 16
_MOST = 512


@dataclass
class BatchSize:
    """Twice as many files after an answer within half of `wanted_seconds`, half as many after one of twice as long."""

    wanted_seconds: float = 2.0
    files: int = _FIRST

    def learn(self, files: int, seconds: float) -> None:
        """Take the time of an answer to so many files into account; one that was not full tells nothing of more."""
        if seconds > 2 * self.wanted_seconds:
            self.files = max(1, min(self.files, files // 2))
        elif seconds < self.wanted_seconds / 2 and files >= self.files:
            self.files = min(_MOST, 2 * self.files)


def batches(entries: Iterable[tuple[T, int]], size: BatchSize, most_bytes: int) -> Iterator[list[T]]:
    """Cut (entry, bytes) into batches of as many as `size` says, and of `most_bytes` unless one alone has more."""
    batch: list[T] = []
    held = 0
    for entry, count in entries:
        if batch and (len(batch) >= size.files or held + count > most_bytes):
            yield batch
            batch, held = [], 0
        batch.append(entry)
        held += count
    if batch:
        yield batch
