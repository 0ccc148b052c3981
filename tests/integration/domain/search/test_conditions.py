"""Search filters: what each one selects among five items, and that nonsense is refused before it reaches SQL."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.search.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, InvalidFilter, compile_filter
from service.tables import Gallery, Item, create_embeddings_table
from service.vectors.rows import Origin, VectorFormat

ITEMS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "a": ("cat", {"year": 2019, "camera": {"lens": "wide", "f": [1.4, 2]}, "raw": True}),
    "b": ("dog", {"year": 2020.0, "camera": {"lens": "tele"}, "raw": False}),
    "c": ("cat", {"year": "2021", "camera": None, "odd, {key} \"'": 1}),
    "d": (None, {"year": None, "camera.lens": "flat", "": "nameless", "null": 0}),
    "e": ("it's", {"nested": {"ü": {"0": "猫"}}}),
}
UNCERTAINTY = {"a": 0.0, "b": 0.25, "c": math.nan, "d": 3.0, "e": 0.1}
ORIGINS = {"a": Origin.ENCODED, "e": Origin.BACKFILLED}  # the others are transformed
HOPS = {"b": 1, "c": 2}
IMAGE_URIS = {"a": "s3://one/a", "b": "s3://two/b"}
GENERATION = 7


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.session_scope() as session:
        gallery = Gallery(name="g", metric="l2", dtype="float16", thumbnails=False, revision=0)
        session.add(gallery)
        session.flush()
        for name, (label, metadata) in ITEMS.items():
            session.add(
                Item(
                    gallery_id=gallery.id,
                    external_id=name,
                    label=label,
                    metadata_=metadata,
                    image_uri=IMAGE_URIS.get(name),
                    revision=1,
                )
            )
        session.flush()
        create_embeddings_table(session, GENERATION, VectorFormat(1, None, "float16"))
        for name, uncertainty in UNCERTAINTY.items():
            session.execute(
                text(
                    f"INSERT INTO embeddings_{GENERATION} SELECT id, 1, :origin, :hops, :uncertainty, '[0]'"
                    " FROM items WHERE external_id = :name"
                ),
                {"name": name, "uncertainty": uncertainty, "origin": ORIGINS.get(name, 3), "hops": HOPS.get(name, 0)},
            )
        yield session


def matches(session: Session, condition: object) -> str:
    """Return the ids of the items that pass, as one word."""
    passes = compile_filter(condition, GENERATION)
    return "".join(session.scalars(select(Item.external_id).where(passes).order_by(Item.id)))


SELECTED: list[tuple[dict[str, Any], str]] = [
    ({}, "abcde"),
    ({"id": "b"}, "b"),
    ({"image_uri": "s3://two/b"}, "b"),
    ({"image_uri": {"gte": "s3://one/", "lt": "s3://one0"}}, "a"),
    ({"image_uri": {"ne": "s3://two/b"}}, "acde"),
    ({"origin": "transformed"}, "bcd"),
    ({"origin": {"ne": "transformed"}}, "ae"),
    ({"origin": {"in": ["encoded", "imported"]}}, "a"),
    ({"origin": 3}, ""),
    ({"hops": 0}, "ade"),
    ({"hops": {"gte": 1}}, "bc"),
    ({"hops": {"gt": 1}, "origin": "transformed"}, "c"),
    ({"uncertainty": 0}, "a"),
    ({"uncertainty": 0.1}, "e"),
    ({"uncertainty": {"lte": 0.25}}, "abe"),
    ({"uncertainty": {"gt": 0.1, "lt": 3}}, "b"),
    ({"uncertainty": {"gte": 0.2}}, "bd"),
    ({"uncertainty": {"ne": 3}}, "abce"),
    ({"uncertainty": {"in": [0.25, 3]}}, "bd"),
    ({"uncertainty": {"lt": "1"}}, ""),
    ({"not": {"uncertainty": {"lt": 1}}}, "cd"),
    ({"uncertainty": {"lt": 1}, "label": "cat"}, "a"),
    ({"label": "cat"}, "ac"),
    ({"label": "it's"}, "e"),
    ({"label": {"ne": "cat"}}, "bde"),
    ({"label": {"in": ["dog", "it's", 5]}}, "be"),
    ({"label": {"in": []}}, ""),
    ({"label": {"gt": "cat"}}, "be"),
    ({"metadata.year": 2019}, "a"),
    ({"metadata.year": 2020}, "b"),
    ({"metadata.year": "2021"}, "c"),
    ({"metadata.year": None}, "d"),
    ({"metadata.year": {"gte": 2000}}, "ab"),
    ({"metadata.year": {"gte": "2"}}, "c"),
    ({"metadata.year": {"gt": 2019, "lt": 2021}}, "b"),
    ({"metadata.year": {"lte": 2019}}, "a"),
    ({"metadata.year": {"in": [2020, None]}}, "bd"),
    ({"metadata.raw": True}, "a"),
    ({"metadata.raw": 1}, ""),
    ({"metadata.raw": {"ne": True}}, "bcde"),
    ({"metadata.camera.lens": "wide"}, "a"),
    ({"metadata.camera.f.1": 2}, "a"),
    ({"metadata.camera": {"ne": None}}, "abde"),
    ({"metadata.odd, {key} \"'": 1}, "c"),
    ({"metadata.null": 0}, "d"),
    ({"metadata.nested.ü.0": "猫"}, "e"),
    ({"metadata.camera,lens": "wide"}, ""),
    ({"metadata.camera. lens ": "wide"}, ""),
    ({"metadata.missing": {"ne": 1}}, "abcde"),
    ({"not": {"metadata.missing": 1}}, "abcde"),
    ({"not": {"metadata.year": {"gte": 2000}}}, "cde"),
    ({"and": []}, "abcde"),
    ({"or": []}, ""),
    ({"or": [{"id": "e"}, {"label": "cat", "metadata.raw": True}]}, "ae"),
    ({"and": [{"label": "cat"}, {"not": {"or": [{"id": "a"}, {"id": "b"}]}}]}, "c"),
]


def test_a_filter_selects_what_it_says(session: Session) -> None:
    selected = [(condition, matches(session, condition)) for condition, _ in SELECTED]

    assert selected == SELECTED


def test_values_and_paths_are_data_never_sql(session: Session) -> None:
    injection = "x') OR true; DROP TABLE items; --"

    for condition in ({"id": injection}, {f"metadata.{injection}": 1}, {"label": {"in": [injection, "%s", ":x"]}}):
        assert matches(session, condition) == ""
    assert matches(session, {}) == "abcde"


def test_the_largest_filters_that_are_allowed_are_answered(session: Session) -> None:
    deep: dict[str, Any] = {"id": "a"}
    for _ in range(MAX_DEPTH):
        deep = {"and": [deep]}
    values = [str(number) for number in range(MAX_VALUES - 1)]
    wide = {"or": [{"id": {"in": [*values, "b"]}}, *({"id": str(n)} for n in range(MAX_CONDITIONS - 1))]}

    assert matches(session, deep) == "a"
    assert matches(session, wide) == "b"
    assert matches(session, {"metadata.year": 10**4000}) == ""


def nested(depth: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"id": "a"}
    for _ in range(depth):
        condition = {"not": condition}
    return condition


REFUSED: dict[str, tuple[object, str]] = {
    "a list": ([], "is a JSON object"),
    "a string": ("label = 'cat'", "is a JSON object"),
    "null": (None, "is a JSON object"),
    "unknown field": ({"colour": "red"}, "'colour' is not id, label"),
    "all metadata": ({"metadata": {}}, "'metadata' is not id, label"),
    "empty path": ({"metadata.": 1}, "'metadata.' is not id, label"),
    "NUL in a path": ({"metadata.a\0": 1}, "is not id, label"),
    "surrogate in a path": ({"metadata.\ud800": 1}, "is not id, label"),
    "unknown comparison": ({"label": {"like": "c%"}}, "takes a value or one of gt, gte, in, lt, lte, ne"),
    "no comparison": ({"label": {}}, "takes a value or one of"),
    "list as value": ({"label": ["cat"]}, "is compared with strings"),
    "object as operand": ({"label": {"gt": {}}}, "is compared with strings"),
    "list in in": ({"label": {"in": [["cat"]]}}, "is compared with strings"),
    "in of a string": ({"label": {"in": "cat"}}, "takes a list of values"),
    "in of too many": ({"label": {"in": list(range(MAX_VALUES + 1))}}, "more than"),
    "in of too many together": (
        {"or": [{"label": {"in": list(range(MAX_VALUES // 2 + 1))}}] * 2},
        f"more than {MAX_VALUES} values together",
    ),
    "NUL": ({"label": "\0"}, "holds a NUL"),
    "surrogate in in": ({"label": {"in": ["\udfff"]}}, "is not valid Unicode"),
    "NaN": ({"metadata.x": float("nan")}, "not finite"),
    "infinity": ({"metadata.x": {"lt": float("-inf")}}, "not finite"),
    "and of an object": ({"and": {"id": "a"}}, "'and' takes a list of filters"),
    "or of strings": ({"or": ["a"]}, "is a JSON object"),
    "not of a list": ({"not": []}, "is a JSON object"),
    "too deep": (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
    "too many that are empty": ({"or": [{}] * (MAX_CONDITIONS + 1)}, f"more than {MAX_CONDITIONS} conditions"),
    "too many empty lists": ({"and": [{"or": []}] * (MAX_CONDITIONS + 1)}, f"more than {MAX_CONDITIONS} conditions"),
    "too many empty negations": (
        {"and": [{"not": {}}] * (MAX_CONDITIONS + 1)},
        f"more than {MAX_CONDITIONS} conditions",
    ),
    "a path without end": ({"metadata." + "a." * 100_000 + "b": 1}, "is not id, label"),
    "too wide": ({"or": [{"id": "a"}] * (MAX_CONDITIONS + 1)}, f"more than {MAX_CONDITIONS} conditions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused_with_a_sentence(name: str) -> None:
    condition, sentence = REFUSED[name]

    with pytest.raises(InvalidFilter) as refusal:
        compile_filter(condition, GENERATION)

    assert refusal.value.status_code == 422
    assert sentence in refusal.value.message
