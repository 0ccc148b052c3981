"""Equal values are equal bytes, and so have one digest."""

import json

import pytest

from service.canonical_json import canonical_json, digest_of


def test_keys_are_sorted_and_nothing_is_escaped_that_need_not_be() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "φ"}) == '{"a":"φ","b":[1,2.5,null]}'.encode()


def test_a_value_that_was_kept_as_text_has_the_same_digest() -> None:
    value = {"small": 1e-7, "large": 1e22, "whole": 1.0, "nested": {"z": [True], "a": "é"}}

    kept = json.loads(json.dumps(value, indent=2))

    assert digest_of(kept) == digest_of(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_what_is_no_json_is_not_hashed(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"number": number})
