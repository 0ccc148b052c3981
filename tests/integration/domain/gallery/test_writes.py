"""Writing, replacing and deleting items, under ids of any kind, is seen by every way to read."""

import json

import pytest
from fastapi.testclient import TestClient

from tests.items import check_same, found, names, page, post_one
from tests.networks import image_bytes
from tests.scenario import post_images, search

ROUNDING = 1e-2  # an image's distance from itself as stored in float16 is below, from any other image above


def test_a_deleted_item_is_gone_from_everywhere(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    path = "/v1/galleries/g/items/image-2.png"

    assert gallery.delete(path).status_code == 204

    assert gallery.get(path).status_code == 404
    assert gallery.get(f"{path}/thumbnail").status_code == 404
    assert gallery.delete(path).status_code == 404
    assert page(gallery, 10) == (names(0, 1, 3), None)
    assert sorted(found(search(gallery, 2, k=10))) == names(0, 1, 3)
    assert gallery.get("/v1/galleries/g").json() | {"items": 3, "revision": 5} == gallery.get("/v1/galleries/g").json()


def test_a_deleted_id_can_be_used_again_and_nothing_of_before_comes_back(gallery: TestClient) -> None:
    post_one(gallery, "x", 1, label="old", metadata={"old": 1})
    before = gallery.get("/v1/galleries/g/items/x").json()
    gallery.delete("/v1/galleries/g/items/x")

    status = post_one(gallery, "x", 2)

    after = gallery.get("/v1/galleries/g/items/x").json()
    assert status == "created"
    assert (after["label"], after["metadata"]) == (None, {})
    assert after["created_at"] > before["created_at"]
    assert search(gallery, 2)["neighbors"][0]["distance"] < ROUNDING < search(gallery, 1)["neighbors"][0]["distance"]


def test_the_same_bytes_again_replace_the_item_with_the_same_answers(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    before = search(gallery, 1, k=4)

    results = post_images(gallery, range(4)).json()["results"]

    after = search(gallery, 1, k=4)
    assert {result["status"] for result in results} == {"replaced"}
    check_same(after["neighbors"], before["neighbors"])
    assert after["revision"] == before["revision"] + 4
    assert page(gallery, 10) == (names(0, 1, 2, 3), None)


def test_other_bytes_under_an_id_replace_what_it_was(gallery: TestClient) -> None:
    post_images(gallery, [1, 2])
    created_at = gallery.get("/v1/galleries/g/items/image-1.png").json()["created_at"]

    status = post_one(gallery, "image-1.png", 50, label="other")

    item = gallery.get("/v1/galleries/g/items/image-1.png").json()
    assert (status, item["label"], item["metadata"], item["created_at"]) == ("replaced", "other", {}, created_at)
    nearest = search(gallery, 50)["neighbors"][0]
    assert (nearest["id"], nearest["label"]) == ("image-1.png", "other")
    assert nearest["distance"] < ROUNDING < search(gallery, 1)["neighbors"][0]["distance"]
    assert gallery.get("/v1/galleries/g").json()["items"] == 2


@pytest.mark.parametrize("identifier", ["a/b c.png", "ümläut 猫.jpg", "100%", "?x#y", "..a", "a//b", " "])
def test_unusual_ids_can_be_stored_read_and_deleted(gallery: TestClient, identifier: str) -> None:
    gallery.post(
        "/v1/galleries/g/images",
        files=[("files", ("x", image_bytes(1)))],
        data={"items": json.dumps([{"id": identifier}])},
    )
    path = "/v1/galleries/g/items/" + "".join(f"%{byte:02X}" for byte in identifier.encode())

    assert gallery.get(path).json()["id"] == identifier
    assert gallery.get(f"{path}/thumbnail").headers["content-type"] == "image/jpeg"
    assert gallery.delete(path).status_code == 204
    assert gallery.get(path).status_code == 404
