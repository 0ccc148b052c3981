"""What a user may say of an item: the limits of its id, its label and its metadata."""

import math
import unicodedata
from typing import Any

import pytest

from service.domain.gallery.new_items import MAX_ID_LENGTH, MAX_METADATA_DEPTH, InvalidItem, NewItem, item_faults

ROOMY_BYTES = 10_000


def nested(levels: int) -> dict[str, Any]:
    """Return metadata with so many levels below its first one; dictionaries and lists take turns."""
    value: Any = "inside"
    for level in reversed(range(levels)):
        value = [value] if level % 2 else {"next": value}
    return {"first": value}


def check_items(items: list[NewItem], max_metadata_bytes: int) -> None:
    """Raise the first fault."""
    for _, sentence in item_faults(items, max_metadata_bytes):
        raise InvalidItem(sentence)


@pytest.mark.parametrize(
    "external_id", ["a", "x" * MAX_ID_LENGTH, "猫" * MAX_ID_LENGTH, " ", "...", "thumbnail", "a/b"]
)
def test_ids_up_to_the_limits_are_taken(external_id: str) -> None:
    item = NewItem(external_id)

    check_items([item], ROOMY_BYTES)


@pytest.mark.parametrize(
    ("external_id", "sentence"),
    [
        ("", "1 to 512 characters"),
        ("x" * (MAX_ID_LENGTH + 1), "1 to 512 characters"),
        ("a\x00b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a\ud800b", "not valid Unicode"),
        (".", "in a URL"),
        ("..", "in a URL"),
        ("a/thumbnail", "in a URL"),
    ],
)
def test_an_id_beyond_the_limits_is_refused_with_a_sentence(external_id: str, sentence: str) -> None:
    items = [NewItem("good"), NewItem(external_id)]

    with pytest.raises(InvalidItem, match=sentence):
        check_items(items, ROOMY_BYTES)


def test_an_id_that_occurs_twice_is_refused_by_name() -> None:
    items = [NewItem("a"), NewItem("b"), NewItem("a")]

    with pytest.raises(InvalidItem, match="'a' occurs twice"):
        check_items(items, ROOMY_BYTES)


@pytest.mark.parametrize("label", [None, "", "x" * MAX_ID_LENGTH, "two\nlines"])
def test_labels_up_to_the_limits_are_taken(label: str | None) -> None:
    item = NewItem("a", label=label)

    check_items([item], ROOMY_BYTES)


@pytest.mark.parametrize("label", ["x" * (MAX_ID_LENGTH + 1), "a\x00b", "a\udfffb"])
def test_a_label_beyond_the_limits_is_refused_with_the_id_of_its_item(label: str) -> None:
    item = NewItem("a", label=label)

    with pytest.raises(InvalidItem, match="label of 'a' cannot be stored"):
        check_items([item], ROOMY_BYTES)


def test_metadata_may_be_as_large_as_the_limit_and_no_larger() -> None:
    item = NewItem("a", {"text": "ü" * 10})  # {"text": "üüüüüüüüüü"}

    check_items([item], max_metadata_bytes=22)

    with pytest.raises(InvalidItem, match="larger than 21 bytes"):
        check_items([item], max_metadata_bytes=21)


def test_metadata_may_be_nested_as_deep_as_the_limit_and_no_deeper() -> None:
    deepest, too_deep = nested(MAX_METADATA_DEPTH - 1), nested(MAX_METADATA_DEPTH)

    check_items([NewItem("a", deepest)], ROOMY_BYTES)

    with pytest.raises(InvalidItem, match=f"nested deeper than {MAX_METADATA_DEPTH}"):
        check_items([NewItem("a", too_deep)], ROOMY_BYTES)


@pytest.mark.parametrize(
    "metadata",
    [{"key\x00": 1}, {"list": ["a", {"deep": "b\x00"}]}, {"half": "\ud800"}, {"\udfff": None}],
)
def test_text_that_cannot_be_stored_is_found_anywhere_in_metadata(metadata: dict[str, Any]) -> None:
    item = NewItem("a", metadata)

    with pytest.raises(InvalidItem, match="has a NUL or is not valid Unicode"):
        check_items([item], ROOMY_BYTES)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_anywhere_in_metadata(number: float) -> None:
    item = NewItem("a", {"list": [1.5, {"deep": number}]})

    with pytest.raises(InvalidItem, match="not finite"):
        check_items([item], ROOMY_BYTES)


def test_text_that_only_looks_like_what_is_refused_is_taken() -> None:
    item = NewItem("a", {"NaN": "Infinity", "escape": "\\u0000", "big": 2**60, "tiny": 1e-300})

    check_items([item], ROOMY_BYTES)


def test_every_fault_is_given_with_its_position() -> None:
    items = [NewItem("a\n"), NewItem("b"), NewItem("c", label="\0"), NewItem("b")]

    faults = list(item_faults(items, ROOMY_BYTES))

    assert [position for position, _ in faults] == [0, 2, 3]


def test_an_id_has_one_form_however_it_is_typed() -> None:
    assert NewItem(unicodedata.normalize("NFD", "Äpfel.png")) == NewItem("Äpfel.png")
