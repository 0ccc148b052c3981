"""New items: what a user says about an item, and whether it can be stored."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.db import is_storable
from service.errors import Unprocessable

MAX_ID_LENGTH = 512
MAX_METADATA_DEPTH = 64


class InvalidItem(Unprocessable):
    """An item's id, label or metadata cannot be stored."""


@dataclass(frozen=True)
class NewItem:
    """What is stored of one item besides its vectors: what a user says about it, and its thumbnail as JPEG."""

    external_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    thumbnail: bytes | None = None


def check_items(items: Sequence[NewItem], max_metadata_bytes: int) -> None:
    """Raise `InvalidItem` (422) for an id, label or metadata that cannot be stored, or an id that occurs twice."""
    seen: set[str] = set()
    for item in items:
        check_external_id(item.external_id)
        if item.external_id in seen:
            raise InvalidItem(f"The id {item.external_id!r} occurs twice in this request.")
        seen.add(item.external_id)
        if item.label is not None and (not is_storable(item.label) or len(item.label) > MAX_ID_LENGTH):
            raise InvalidItem(f"The label of {item.external_id!r} cannot be stored: at most 512 characters, no NUL.")
        if _nested_deeper(item.metadata, MAX_METADATA_DEPTH):
            raise InvalidItem(f"The metadata of {item.external_id!r} is nested deeper than {MAX_METADATA_DEPTH}.")
        encoded = json.dumps(item.metadata, ensure_ascii=False)
        if len(encoded) > max_metadata_bytes:
            raise InvalidItem(f"The metadata of {item.external_id!r} is larger than {max_metadata_bytes} bytes.")
        if not is_storable(encoded) or "\\u0000" in encoded or "NaN" in encoded or "Infinity" in encoded:
            _check_metadata_values(item.external_id, item.metadata)


def _nested_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested_deeper(child, levels - 1) for child in children)


def check_external_id(external_id: str) -> None:
    """Raise `InvalidItem` unless the id has 1 to 512 characters, all printable, and does not end in /thumbnail."""
    if not 1 <= len(external_id) <= MAX_ID_LENGTH:
        raise InvalidItem("An id has 1 to 512 characters.")
    if not is_storable(external_id) or any(ord(character) < 32 or ord(character) == 127 for character in external_id):
        raise InvalidItem(f"The id {external_id!r} has control characters or is not valid Unicode.")
    if external_id.endswith("/thumbnail") or external_id in (".", ".."):
        raise InvalidItem(f"The id {external_id!r} could not be addressed in a URL.")


def _check_metadata_values(external_id: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_metadata_values(external_id, key)
            _check_metadata_values(external_id, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_metadata_values(external_id, inner)
    elif isinstance(value, str) and not is_storable(value):
        raise InvalidItem(f"The metadata of {external_id!r} has a NUL or is not valid Unicode.")
    elif isinstance(value, float) and value - value != 0:
        raise InvalidItem(f"The metadata of {external_id!r} has a number that is not finite.")
