"""What an upgrade needs of a store that a gallery lives in: `ExternalStore`.

A store has an *old side*, where the gallery's embeddings are, and, once `prepare` made it, a *new side*: another column,
named vector, collection, table or file. Whoever searches the store sees the old side until `switch`, the new one from
then on, and both are kept until one is dropped.

Keys order the rows. A range of keys is what a batch of an upgrade is: it can be read again and written again with the
same effect, by anyone, after any crash. No method keeps a transaction open between calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import Unavailable, Unprocessable

Vectors = NDArray[np.float32]


class StoreAway(Unavailable):
    """The store does not answer, or refuses for a reason that passes; the same may succeed later."""


class StoreRefused(Unprocessable):
    """What the store holds, or how it is named, cannot be upgraded; trying again does not help."""


@dataclass(frozen=True)
class Description:
    """What is there. `metric` is l2, cosine or ip, None where the store does not know; `scales` says that the store
    itself brings vectors to unit norm when they are written; `notices_writes` that `changed_keys` is complete, so that
    no range has to be read again to find what was written meanwhile."""

    rows: int
    embedding_dim: int
    side_information_dim: int | None
    metric: str | None
    dtype: str
    scales: bool = False
    notices_writes: bool = False


@dataclass(frozen=True)
class KeyRange:
    """Rows with after < key <= upto, in the store's own order of keys; None is an end that is open."""

    after: str | None
    upto: str | None


@dataclass(frozen=True)
class Rows:
    """Rows by ascending key: keys (N,), embedding (N, D) float32, side_information (N, S) float32 or None."""

    keys: list[str]
    embedding: Vectors
    side_information: Vectors | None = None


@dataclass(frozen=True)
class NewSide:
    """What the new side holds. `name` says which upgrade it belongs to: what `prepare` makes is named by it."""

    name: str
    embedding_dim: int
    side_information_dim: int | None
    normalized: bool


Transform = Callable[[Rows], Rows]


class ExternalStore(Protocol):
    """One gallery in one store. Every method may raise `StoreAway` and `StoreRefused`."""

    def describe(self) -> Description:
        """Say what the old side holds."""

    def bounds(self, rows: int) -> list[str]:
        """Return keys that cut the old side into ranges of about `rows` rows, ascending, without the two open ends."""

    def read(self, keys: KeyRange) -> Rows:
        """Return the old side's rows of a range."""

    def prepare(self, new: NewSide) -> None:
        """Make the new side, empty, and begin to notice writes where the store can; nothing if that is done."""

    def write(self, keys: KeyRange, rows: Rows) -> None:
        """Make the new side hold exactly `rows` in this range, of those whose items the old side still has."""

    def read_new(self, keys: KeyRange) -> Rows:
        """Return the new side's rows of a range."""

    def changed_keys(self, limit: int) -> list[str]:
        """Return up to `limit` keys that were written or deleted on the old side since `prepare` and were not
        `settle`d; empty where the store does not notice writes."""

    def settle(self, transform: Transform, limit: int) -> int:
        """Bring up to `limit` of the changed keys to the new side, and return how many it were."""

    def switch(self, transform: Transform) -> None:
        """Let searches see the new side, in one step that is whole or not done; nothing if that is done.

        What was written until then is brought to the new side in the same step where the store can do that.
        """

    def switch_back(self) -> None:
        """Let searches see the old side again; nothing if they do."""

    def is_switched(self) -> bool:
        """Return whether searches see the new side: asked after a crash between the switch and its record."""

    def drop_new(self) -> None:
        """Remove the new side and what notices writes, when searches see the old one."""

    def drop_old(self) -> None:
        """Remove the old side and what notices writes, when searches see the new one."""

    def searched(self, query: Vectors, k: int) -> list[str]:
        """Return the keys that a user of the store finds for one query (D,), nearest first: by the side that searches
        see. Tests and the probe after a switch ask it."""

    def close(self) -> None:
        """Give connections back."""


def keep_open_ends(bounds: list[str]) -> list[KeyRange]:
    """Return the ranges that bounds cut the keys into, the first and the last one open."""
    ends: list[Any] = [None, *bounds, None]
    return [KeyRange(after, upto) for after, upto in zip(ends, ends[1:], strict=False)]
