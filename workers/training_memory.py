"""What a worker keeps of one training between its time slices, so that it is not read again every few seconds."""

from collections.abc import Callable
from typing import Any, TypeVar

Kept = TypeVar("Kept")


class TrainingMemory:
    """Things by name, of the training that was worked on last."""

    def __init__(self) -> None:
        self._prefix: str | None = None
        self._kept: dict[str, Any] = {}

    def keep(self, prefix: str, name: str, make: Callable[[], Kept]) -> Kept:
        """Return what is kept for the training of this file prefix under `name`; made when it is not there."""
        if prefix != self._prefix:
            self._prefix, self._kept = prefix, {}
        of_this_training = self._kept  # the sweep's thread may forget it meanwhile
        if name not in of_this_training:
            of_this_training[name] = make()
        kept: Kept = of_this_training[name]
        return kept

    def forget(self) -> None:
        """Free the memory."""
        self._prefix, self._kept = None, {}
