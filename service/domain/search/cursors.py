"""Cursors: where the page before ended, in a form that callers hand back and do not read.

A cursor is checked, and is no secret: it shows nobody more than the query itself does. It holds for its own query
alone.
"""

import base64
import binascii
import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any, Self

from service.errors import Gone, Unprocessable

FIRST = "*"  # asks for the first page
MAX_PAGED = 10_000  # neighbours of a query, on all its pages
MAX_TEXT = 512
_VERSION = 1
_FIELDS = struct.Struct(">BqqIdq16s")
_CHECK_BYTES = 7  # with the fields 60 bytes, which base64 writes without padding
_NOT_OURS = "The cursor is not one that this service gave; cursor=* asks for the first page."


class InvalidCursor(Unprocessable):
    """The cursor was not given by this service, or not to this query."""


class TooDeep(Unprocessable):
    """The pages of a query end before what the cursor asks for."""


class CursorOutdated(Gone):
    """What the pages are of is no more as it was at the first one."""


@dataclass(frozen=True)
class Cursor:
    """After `position` neighbours of the query with the `digest`, the last of them the item at the distance; pages are
    of the generation as it was at the revision."""

    generation_id: int
    revision: int
    position: int
    distance: float
    item_id: int
    digest: bytes

    def __str__(self) -> str:
        fields = _FIELDS.pack(
            _VERSION, self.generation_id, self.revision, self.position, self.distance, self.item_id, self.digest
        )
        return base64.urlsafe_b64encode(fields + _check(fields)).decode()

    @classmethod
    def of(cls, text: str, digest: bytes) -> Self:
        """Return what a cursor says, of the query with the digest. Raises `InvalidCursor` and `TooDeep` (422)."""
        try:
            data = base64.b64decode(text, altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidCursor(_NOT_OURS) from error
        fields, check = data[: _FIELDS.size], data[_FIELDS.size :]
        if len(fields) != _FIELDS.size or check != _check(fields) or fields[0] != _VERSION:
            raise InvalidCursor(_NOT_OURS)
        _, *values = _FIELDS.unpack(fields)
        cursor = cls(*values)
        if cursor.digest != digest:
            raise InvalidCursor(
                "The cursor is of another query: the next page is asked for with what the first one was asked with."
                " Only k may differ."
            )
        if cursor.position >= MAX_PAGED:
            raise TooDeep(f"The pages of a query end at its {MAX_PAGED:,}th neighbour; narrow it by a filter.")
        return cursor


def digest_of_query(*parts: Any) -> bytes:
    """Return 16 bytes that tell a query from others, of values of JSON's types."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16]


def _check(fields: bytes) -> bytes:
    return hashlib.blake2b(fields, digest_size=_CHECK_BYTES).digest()
