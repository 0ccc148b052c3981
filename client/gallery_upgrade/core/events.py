"""Server-sent events, read from the lines of a stream."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event: what it is (`state`, `note`, `progress`), what it says, and the id that a reader goes on from.

    A `ping` says nothing but that the stream is alive.
    """

    kind: str
    data: dict[str, Any]
    id: int | None


class EventReader:
    """Takes the lines of a stream one by one."""

    def __init__(self) -> None:
        self._fields: dict[str, list[str]] = {}

    def take(self, line: str) -> Event | None:
        """Return the event that this line ends, or None. Lines come without their ends; a comment is a ping."""
        if line.startswith(":"):
            return Event("ping", {}, None)
        if line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        ids = fields.get("id", [])
        kind = fields.get("event", ["message"])[-1]
        return Event(kind, json.loads("\n".join(fields["data"])), int(ids[-1]) if ids else None)
