"""The form with which images are posted: how many files, and what is said of them."""

import json

import pytest
from fastapi.testclient import TestClient

from tests.networks import image_bytes
from tests.problems import check_problem


def test_too_many_files_are_413(gallery: TestClient) -> None:
    files = [("files", (f"{number}", b"x")) for number in range(10_001)]

    check_problem(gallery.post("/v1/galleries/g/images", files=files), 413)


def test_ten_thousand_files_are_accepted_and_told_apart(gallery: TestClient) -> None:
    files = [("files", (f"{number}", b"x")) for number in range(9_999)] + [("files", ("good", image_bytes(1)))]

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["id"] for result in results if result["status"] == "created"] == ["good"]
    assert len(results) == 10_000


BAD_ITEMS: dict[str, object] = {
    "not json": "{",
    "not a list": {},
    "wrong count": [],
    "unknown key": [{"identifier": "x"}],
    "number as id": [{"id": 5}],
    "empty id": [{"id": ""}],
    "NUL in id": [{"id": "a\0b"}],
    "control character": [{"id": "a\nb"}],
    "long id": [{"id": "x" * 513}],
    "surrogate": '[{"id": "\\ud800"}]',
    "NUL in metadata": [{"metadata": {"a": ["\0"]}}],
    "NaN in metadata": '[{"metadata": {"a": NaN}}]',
    "surrogate in metadata": '[{"metadata": {"\\udc00": 1}}]',
    "metadata is a list": [{"metadata": []}],
    "large metadata": [{"metadata": {"a": "x" * 70_000}}],
    "deep metadata": '[{"metadata": {"a": ' + "[" * 200 + "]" * 200 + "}}]",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_items_part_is_422(gallery: TestClient, name: str) -> None:
    items = BAD_ITEMS[name]
    part = items if isinstance(items, str) else json.dumps(items)

    answer = gallery.post(
        "/v1/galleries/g/images", files=[("files", ("x", image_bytes(1)))], data={"items": part.encode()}
    )

    check_problem(answer, 422)
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


def test_an_id_twice_in_one_request_is_422(gallery: TestClient) -> None:
    files = [("files", ("same", image_bytes(1))), ("files", ("same", image_bytes(2)))]

    assert "'same' occurs twice" in check_problem(gallery.post("/v1/galleries/g/images", files=files), 422)
