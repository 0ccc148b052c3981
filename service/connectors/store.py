"""What an upgrade needs of a store that a gallery lives in: `ExternalStore`.

A store has an *old side*, where the gallery's embeddings are, and, once `prepare` made it, a *new side*: another
column, collection, table or file. Whoever searches the store sees the old side until `switch`, the new one from then
on, and both are kept until one is dropped.

Keys order the rows. A range of keys is what a batch of an upgrade is: it can be read again and written again with the
same effect, by anyone, after any crash. No method keeps a transaction open between calls. A store object is for one
thread at a time; several may be open on one gallery.

A store that notices writes converges by `settle`, one that does not by reading and writing its ranges again. There,
whoever writes to the gallery pauses from the last pass over the ranges until the switch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import Conflict, Unavailable
from service.json_records import JsonRecord

Vectors = NDArray[np.float32]

_NAME = re.compile(r"[a-z0-9_]{1,32}")


class StoreAway(Unavailable):
    """The store does not answer, or refuses for a reason that passes; the same may succeed later."""


class StoreRefused(Conflict):
    """What the store holds, what state it is in, or how it is named keeps it from what was asked of it."""


@dataclass(frozen=True)
class Description(JsonRecord):
    """What is there. `metric` is l2, cosine or ip, None where the store does not know; `scales` says that the store
    itself brings vectors to unit norm when they are written; `notices_writes` that `changed_keys` is complete, so that
    no range has to be read again to find what was written meanwhile; `warning` is a sentence for whoever decides."""

    rows: int
    embedding_dim: int
    side_information_dim: int | None
    metric: str | None
    dtype: str
    scales: bool = False
    notices_writes: bool = False
    warning: str | None = None


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

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StoreRefused("The name of a new side is 1 to 32 of a to z, 0 to 9 and _.")


Transform = Callable[[Rows], Rows]


def needed(new: NewSide | None) -> NewSide:
    """Return the new side, or raise `StoreRefused` where the store was opened without."""
    if new is None:
        raise StoreRefused("The store was opened without a new side.")
    return new


class ExternalStore(Protocol):
    """One gallery in one store, and the new side that it was opened with. Every method may raise `StoreAway` and
    `StoreRefused`; without a new side, those that need one raise the latter."""

    def describe(self) -> Description:
        """Say what the old side holds."""

    def bounds(self, rows: int) -> list[str]:
        """Return keys that cut the old side into ranges of about `rows` rows, ascending, without the two open ends."""

    def read(self, keys: KeyRange) -> Rows:
        """Return the old side's rows of a range; refuse vectors that are not finite."""

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        """Return what else the store holds of the items of a range, by key: columns, fields or a payload, without
        vectors; empty where it holds nothing else."""

    def prepare(self) -> None:
        """Make the new side, empty, and begin to notice writes where the store can; nothing if that is done."""

    def write(self, keys: KeyRange, rows: Rows) -> None:
        """Make the new side hold exactly `rows` in this range, of those whose items the old side still has.

        Items that were changed since `prepare` are left to `settle` where the store notices writes. Refused when
        searches see the new side: then its users write to it. No call is to be under way when a switch begins.
        """

    def read_new(self, keys: KeyRange) -> Rows:
        """Return the new side's rows of a range."""

    def changed_keys(self, limit: int) -> list[str]:
        """Return up to `limit` keys that were written or deleted on the old side since `prepare` and were not
        `settle`d; empty where the store does not notice writes."""

    def settle(self, transform: Transform, limit: int) -> int:
        """Bring up to `limit` of the changed keys to the new side, and return how many it were."""

    def index(self) -> None:
        """Make the new side as fast to search as the old one, where writing does not do that; nothing if that is done.

        It may take long, and is called when all ranges are written, before the switch.
        """

    def switch(self, transform: Transform) -> None:
        """Let searches see the new side, in one step that is whole or not done; nothing if that is done.

        What was written until then is brought to the new side in the same step where the store can do that. Where the
        store needs more steps than one, its module says what a crash between them leaves; the next call completes it.
        """

    def switch_back(self, *, forget_written: bool = False) -> None:
        """Let searches see the old side again; nothing if they do.

        Where the store notices writes, this is refused with the number of items that were written since the switch,
        unless they are to be forgotten: then they have no embedding on the old side until they are encoded again.
        Elsewhere, what was written since the switch is on the new side alone.
        """

    def is_switched(self) -> bool:
        """Return whether searches see the new side: asked while both sides are there, after a crash between the switch
        and its record."""

    def drop_new(self) -> None:
        """Remove the new side and what notices writes; nothing if that is done, refused when searches see it."""

    def drop_old(self) -> None:
        """Remove the old side and what notices writes; nothing if that is done, refused when searches see it."""

    def searched(self, query: Vectors, k: int) -> list[str]:
        """Return the keys that a user of the store finds for one query (D,), nearest first: by the side that searches
        see. Tests and the probe after a switch ask it."""

    def close(self) -> None:
        """Give connections back."""


def keep_open_ends(bounds: list[str]) -> list[KeyRange]:
    """Return the ranges that bounds cut the keys into, the first and the last one open."""
    ends: list[Any] = [None, *bounds, None]
    return [KeyRange(after, upto) for after, upto in pairwise(ends)]


def part_of(rows: Rows, places: slice | list[int]) -> Rows:
    """Return some of the rows."""
    keys = rows.keys[places] if isinstance(places, slice) else [rows.keys[place] for place in places]
    side = rows.side_information
    return Rows(keys, rows.embedding[places], None if side is None else side[places])


def refuse_not_finite(rows: Rows) -> Rows:
    """Return the rows, all of whose numbers are finite; raises `StoreRefused` with keys of those that are not."""
    bad = ~np.isfinite(rows.embedding).all(axis=1)
    if rows.side_information is not None:
        bad |= ~np.isfinite(rows.side_information).all(axis=1)
    if bad.any():
        named = ", ".join(rows.keys[row] for row in np.flatnonzero(bad)[:5])
        raise StoreRefused(f"The vectors of {bad.sum()} items are not finite; the first keys: {named}.")
    return rows


def refuse_other_dims(rows: Rows, new: NewSide) -> None:
    """Raise `StoreRefused` unless the rows are as wide as the new side's."""
    side = rows.side_information
    found = (rows.embedding.shape[1], None if side is None else side.shape[1])
    if found != (new.embedding_dim, new.side_information_dim):
        raise StoreRefused(
            f"Rows for the new side have (embedding, side information) of {found[0], found[1]} numbers;"
            f" it holds {new.embedding_dim, new.side_information_dim}."
        )
