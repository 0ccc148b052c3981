"""Two answers to one query side by side, and where the lines between the same items run. Pure."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from service.domain.judging.examples import Example, FoundItem
from service.domain.search.answers import Answer, Neighbor, Which
from service.errors import Conflict, Gone

_ROW = 100  # the height of a row in the picture of the lines


class Move(StrEnum):
    """What became of an item's rank."""

    SAME = "same"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Line:
    """From a row of the left column to one of the right, as the path of an SVG that is 100 wide."""

    path: str
    move: Move


@dataclass(frozen=True)
class Found:
    """An item of an answer."""

    id: str
    label: str | None
    distance: float
    has_thumbnail: bool


@dataclass(frozen=True)
class Row:
    """An item at its rank, from 1; `other_rank` is that in the other answer, None where it is not in it."""

    rank: int
    item: Found
    other_rank: int | None


@dataclass(frozen=True)
class Comparison:
    """What two generations answer; `after` is None where only one was asked."""

    before: list[Row]
    after: list[Row] | None

    @property
    def lines(self) -> list[Line]:
        """The lines between items that are in both answers."""
        return [_line(row.rank, row.other_rank) for row in self.before if row.other_rank is not None]

    @property
    def height(self) -> int:
        """How high the picture of the lines is: 100 a row."""
        return _ROW * max(1, len(self.before), len(self.after or ()))

    @property
    def swapped(self) -> "Comparison":
        """The same with the columns changed over."""
        return self if self.after is None else Comparison(self.after, self.before)


def compare(ask: Callable[[Which], Answer], before: Which, after: Which | None) -> Comparison:
    """Ask one generation, and another one if there is one that can answer; of each, the answer to its first query."""
    first, second = _of_answer(ask(before).neighbors[0]), None
    if after is not None:
        with suppress(Conflict, Gone):  # it was given up meanwhile, or has yet to get the item that is asked by
            second = _of_answer(ask(after).neighbors[0])
    return compared(first, second)


def compare_example(example: Example) -> Comparison:
    """Return what a report keeps of both answers to a query."""
    return compared(_of_example(example.before), _of_example(example.after))


def compared(before: Sequence[Found], after: Sequence[Found] | None) -> Comparison:
    """Return two answers, nearest first, side by side."""
    if after is None:
        return Comparison(_rows(before, ()), None)
    return Comparison(_rows(before, after), _rows(after, before))


def _of_answer(neighbors: Sequence[Neighbor]) -> list[Found]:
    return [Found(each.item.id, each.item.label, each.distance, each.item.has_thumbnail) for each in neighbors]


def _of_example(found: Sequence[FoundItem]) -> list[Found]:
    return [Found(each.item.id, each.item.label, each.distance, each.item.has_thumbnail) for each in found]


def _rows(found: Sequence[Found], other: Sequence[Found]) -> list[Row]:
    places = {each.id: rank for rank, each in enumerate(other, 1)}
    return [Row(rank, each, places.get(each.id)) for rank, each in enumerate(found, 1)]


def _line(left: int, right: int) -> Line:
    start, end = (_ROW * (rank - 0.5) for rank in (left, right))
    move = Move.SAME if left == right else Move.UP if right < left else Move.DOWN
    return Line(f"M0 {start:g} C45 {start:g} 55 {end:g} 100 {end:g}", move)
