"""Records that rows keep as JSON."""

from dataclasses import dataclass

from service.json_records import JsonRecord


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Whole(JsonRecord):
    parts: tuple[Part, ...]
    share: float
    note: str | None = None


WHOLE = Whole((Part("a"), Part("b")), 0.5)
JSON = {"parts": [{"name": "a"}, {"name": "b"}], "share": 0.5, "note": None}


def test_a_record_is_an_object_of_its_fields() -> None:
    assert WHOLE.to_json() == JSON
    assert Whole.from_json(JSON) == WHOLE


def test_keys_that_a_record_does_not_know_are_passed_over_and_those_that_lack_have_its_defaults() -> None:
    kept = {"parts": [], "share": 1, "older": True}

    assert Whole.from_json(kept) == Whole((), 1.0, None)
