"""Batches and ranges as a grid of squares, and how many of those shown are in which state. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.domain.batch_state import BatchState
from service.tables import ExternalBatch, UpgradeBatch

Batch = TypeVar("Batch", UpgradeBatch, ExternalBatch)


@dataclass(frozen=True)
class Square:
    """One batch: the class that draws it, and what is read of it."""

    look: str
    words: str


@dataclass(frozen=True)
class Work:
    """A grid and its counts; what failed waits to be tried again, and is not counted as waiting."""

    waiting: int
    leased: int
    done: int
    failed: int
    squares: list[Square]


def work_of(batches: Sequence[Batch], name: Callable[[Batch], str]) -> Work:
    """Return batches as a grid, in their order; `name` says which one it is."""
    looks = [_look(batch) for batch in batches]
    squares = [
        Square(look, f"{name(batch)}: {batch.state}{f', {batch.error}' if batch.error else ''}")
        for batch, look in zip(batches, looks, strict=True)
    ]
    return Work(
        waiting=looks.count(BatchState.PENDING),
        leased=looks.count(BatchState.CLAIMED),
        done=looks.count(BatchState.DONE),
        failed=looks.count("failed"),
        squares=squares,
    )


def _look(batch: UpgradeBatch | ExternalBatch) -> str:
    is_failed = batch.state is not BatchState.DONE and (batch.refused is not None or batch.error is not None)
    return "failed" if is_failed else str(batch.state)
