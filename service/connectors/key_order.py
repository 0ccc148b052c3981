"""The order of a file's keys, whatever the order of its rows."""

from bisect import bisect_right
from typing import Any

import numpy as np

from service.connectors.file_kinds import FileKind
from service.connectors.store import KeyRange, StoreRefused


class KeyOrder:
    """A file's keys in ascending order, and their places in it."""

    def __init__(self, files: FileKind) -> None:
        self._are_numbers = files.are_numbers
        places = sorted(range(len(files.keys)), key=lambda place: self.sort(files.keys[place]))
        self.places = np.array(places, np.int64)
        self.keys = [files.keys[place] for place in places]
        for key, following in zip(self.keys, self.keys[1:], strict=False):
            if key == following:
                raise StoreRefused(f"The key {key!r} occurs twice in {files.path.name}.")

    def sort(self, key: str) -> Any:
        """Return what orders a key."""
        return int(key) if self._are_numbers else key

    def span(self, keys: KeyRange) -> slice:
        """Return where a range lies."""
        start = 0 if keys.after is None else bisect_right(self.keys, self.sort(keys.after), key=self.sort)
        stop = len(self.keys) if keys.upto is None else bisect_right(self.keys, self.sort(keys.upto), key=self.sort)
        return slice(start, stop)

    def is_within(self, key: str, keys: KeyRange) -> bool:
        """Return whether a range has a key."""
        place = self.sort(key)
        return (keys.after is None or place > self.sort(keys.after)) and (
            keys.upto is None or place <= self.sort(keys.upto)
        )

    def are_apart(self, one: KeyRange, other: KeyRange) -> bool:
        """Return whether no key lies in both ranges."""
        pairs = ((one.upto, other.after), (other.upto, one.after))
        return any(
            upto is not None and after is not None and self.sort(upto) <= self.sort(after) for upto, after in pairs
        )

    def contains(self, one: KeyRange, other: KeyRange) -> bool:
        """Return whether every key of the other range lies in the one."""
        begins = one.after is None or (other.after is not None and self.sort(other.after) >= self.sort(one.after))
        ends = one.upto is None or (other.upto is not None and self.sort(other.upto) <= self.sort(one.upto))
        return begins and ends
