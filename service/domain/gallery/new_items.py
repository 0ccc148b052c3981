"""New items: what a user says about an item, and whether it can be stored.

An id has one form, NFC: the same name typed on a Mac (NFD) and on another machine is one item. `canonical_id` is
applied wherever an id comes in.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.db import is_storable
from service.errors import Unprocessable

MAX_ID_LENGTH = 512
MAX_METADATA_DEPTH = 64
MAX_IMAGE_URI_LENGTH = 2_048
_CONTROLS = re.compile("[\x00-\x1f\x7f]")
_SHOWN = 100  # ids that a refusal names


class InvalidItem(Unprocessable):
    """An item's id, label, metadata or image URI cannot be stored."""


def canonical_id(external_id: str) -> str:
    """Return an id in the form that it is stored in: Unicode's NFC."""
    return unicodedata.normalize("NFC", external_id)


def shown_id(external_id: str) -> str:
    """Return an id as an answer can hold it, be it one that cannot be stored."""
    return external_id[:MAX_ID_LENGTH] if is_storable(external_id) else repr(external_id[:MAX_ID_LENGTH])


@dataclass(frozen=True)
class NewItem:
    """What is stored of one item besides its vectors: what a user says about it, and its thumbnail as JPEG, which is
    read when it is written. Its id is canonical, however it was given.

    `image_uri` says where the image is kept; it need not be one that this service may read.
    """

    external_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    image_uri: str | None = None
    thumbnail: Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "external_id", canonical_id(self.external_id))


def refuse_repeated_ids(items: Sequence[NewItem]) -> None:
    """Raise `InvalidItem` (422) naming every id that occurs twice: which one is meant cannot be told."""
    counts = Counter(item.external_id for item in items)
    repeated = [external_id for external_id, count in counts.items() if count > 1]
    if repeated:
        errors: list[dict[str, object]] = [
            {"id": shown_id(external_id), "detail": "The id occurs twice in this request."}
            for external_id in repeated[:_SHOWN]
        ]
        raise InvalidItem(f"The id {repeated[0]!r} occurs twice in this request ({len(repeated)} such ids).", errors)


def check_items(items: Sequence[NewItem], max_metadata_bytes: int) -> None:
    """Raise `InvalidItem` (422) naming the first hundred items that cannot be stored, if there are any."""
    faults = list(item_faults(items, max_metadata_bytes))
    if faults:
        errors: list[dict[str, object]] = [
            {"id": shown_id(items[position].external_id), "detail": sentence} for position, sentence in faults[:_SHOWN]
        ]
        raise InvalidItem(faults[0][1], errors)


def item_faults(items: Sequence[NewItem], max_metadata_bytes: int) -> Iterator[tuple[int, str]]:
    """Give the positions of items that cannot be stored, with a sentence that says why; an id that occurs twice is a
    fault of the later ones."""
    seen: set[str] = set()
    for position, item in enumerate(items):
        try:
            check_external_id(item.external_id)
            if item.image_uri is not None:
                check_image_uri(item.external_id, item.image_uri)
            check_description(item.external_id, item.label, item.metadata, max_metadata_bytes)
            if item.external_id in seen:
                raise InvalidItem(f"The id {item.external_id!r} occurs twice in this request.")
            seen.add(item.external_id)
        except InvalidItem as error:
            yield position, error.message


def check_description(
    external_id: str, label: str | None, metadata: dict[str, Any] | None, max_metadata_bytes: int
) -> None:
    """Raise `InvalidItem` (422) for a label or metadata that cannot be stored; None is not looked at."""
    if label is not None and (not is_storable(label) or len(label) > MAX_ID_LENGTH):
        raise InvalidItem(f"The label of {external_id!r} cannot be stored: at most 512 characters, no NUL.")
    if metadata is None:
        return
    if _nested_deeper(metadata, MAX_METADATA_DEPTH):
        raise InvalidItem(f"The metadata of {external_id!r} is nested deeper than {MAX_METADATA_DEPTH}.")
    encoded = json.dumps(metadata, ensure_ascii=False)
    if len(encoded) > max_metadata_bytes:
        raise InvalidItem(f"The metadata of {external_id!r} is larger than {max_metadata_bytes} bytes.")
    if not is_storable(encoded) or "\\u0000" in encoded or "NaN" in encoded or "Infinity" in encoded:
        _check_metadata_values(external_id, metadata)


def check_image_uri(external_id: str, image_uri: str) -> None:
    """Raise `InvalidItem` unless the URI has a scheme and 1 to 2,048 characters, all printable."""
    if len(image_uri) > MAX_IMAGE_URI_LENGTH:
        raise InvalidItem(f"The image_uri of {external_id!r} is longer than {MAX_IMAGE_URI_LENGTH:,} characters.")
    if not is_storable(image_uri) or _has_controls(image_uri):
        raise InvalidItem(f"The image_uri of {external_id!r} has control characters or is not valid Unicode.")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", image_uri):
        raise InvalidItem(f"The image_uri of {external_id!r} is not a URI such as s3://bucket/cats/1.jpg.")


def _has_controls(value: str) -> bool:
    return _CONTROLS.search(value) is not None


def _nested_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested_deeper(child, levels - 1) for child in children)


def check_external_id(external_id: str) -> None:
    """Raise `InvalidItem` unless the id has 1 to 512 characters, all printable, and does not end in /thumbnail."""
    if not 1 <= len(external_id) <= MAX_ID_LENGTH:
        raise InvalidItem("An id has 1 to 512 characters.")
    if not is_storable(external_id) or _has_controls(external_id):
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
