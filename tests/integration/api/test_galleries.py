"""Galleries over HTTP: their options, and names that are refused."""

import pytest
from fastapi.testclient import TestClient

from tests.problems import check_problem
from tests.scenario import create_gallery, register_version


@pytest.fixture
def registered(client: TestClient) -> TestClient:
    register_version(client, "v1")
    return client


def test_a_gallery_shows_the_kind_of_index_it_asks_for(registered: TestClient) -> None:
    create_gallery(registered, "small")
    create_gallery(registered, "large", index="ivf_sq8")

    shown = {name: registered.get(f"/v1/galleries/{name}").json()["index"] for name in ("small", "large")}
    listed = {gallery["name"]: gallery["index"] for gallery in registered.get("/v1/galleries").json()["items"]}

    assert shown == listed == {"small": "auto", "large": "ivf_sq8"}


def test_another_kind_of_index_can_be_asked_for_later(registered: TestClient) -> None:
    create_gallery(registered)
    before = registered.get("/v1/galleries/g").json()

    changed = registered.patch("/v1/galleries/g", json={"index": "ivf"})

    assert changed.status_code == 200
    assert changed.json() == registered.get("/v1/galleries/g").json() == before | {"index": "ivf"}


def test_a_gallery_is_searched_for_items_unless_it_says_classes(registered: TestClient) -> None:
    create_gallery(registered, "items")
    create_gallery(registered, "classes", task="class")

    changed = registered.patch("/v1/galleries/items", json={"task": "class"})
    back = registered.patch("/v1/galleries/classes", json={"task": "instance", "index": "flat"})

    assert (changed.json()["task"], changed.json()["index"]) == ("class", "auto")
    assert (back.json()["task"], back.json()["index"]) == ("instance", "flat")
    listed = {gallery["name"]: gallery["task"] for gallery in registered.get("/v1/galleries").json()["items"]}
    assert listed == {"items": "class", "classes": "instance"}


_NO_CHANGES: list[dict[str, object]] = [
    {},
    {"index": "lsh"},
    {"index": None},
    {"index": "ivf", "metric": "ip"},
    {"task": "objects"},
    {"task": None, "index": "ivf"},
]


@pytest.mark.parametrize("change", _NO_CHANGES)
def test_what_is_no_change_is_refused(registered: TestClient, change: dict[str, object]) -> None:
    create_gallery(registered)

    answer = registered.patch("/v1/galleries/g", json=change)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert registered.get("/v1/galleries/g").json()["index"] == "auto"


def test_a_gallery_that_is_not_there_cannot_be_changed(client: TestClient) -> None:
    answer = client.patch("/v1/galleries/none", json={"index": "flat"})

    assert answer.status_code == 404
    assert answer.json()["title"]


BAD_NAMES = ["a/b", "a b", "a\0b", "x" * 300, "", "ä", "-a", ".a"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(gallery: TestClient, name: str) -> None:
    created = gallery.post("/v1/galleries", json={"name": name, "model_version": "v1"})
    asked = gallery.get("/v1/galleries/" + "".join(f"%{byte:02X}" for byte in name.encode()))

    check_problem(created, 422)
    assert asked.status_code in (404, 422, 200 if name == "" else 404)
