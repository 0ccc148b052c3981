"""Items over HTTP: pages, metadata and thumbnails."""

import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.items import names, page, post_one
from tests.problems import check_problem
from tests.scenario import create_gallery, post_images, search


def test_pages_follow_the_order_of_creation_under_inserts_replacements_and_deletes(gallery: TestClient) -> None:
    post_images(gallery, [5, 1, 4, 2])

    first, cursor = page(gallery, 2)
    post_images(gallery, [1, 9])  # one replaced, one new
    gallery.delete("/v1/galleries/g/items/image-4.png")
    second, cursor = page(gallery, 1, cursor)
    post_images(gallery, [8])
    third, end = page(gallery, 10, cursor)

    assert (first, second, third) == (names(5, 1), names(2), names(9, 8))
    assert end is None
    assert page(gallery, 5) == (names(5, 1, 2, 9, 8), None)


def test_a_page_of_an_empty_gallery_is_empty_and_the_last_full_page_says_that_it_is_the_last(
    gallery: TestClient,
) -> None:
    assert page(gallery, 3) == ([], None)

    post_images(gallery, range(3))

    assert page(gallery, 3) == (names(0, 1, 2), None)


@pytest.mark.parametrize("query", ["cursor=LTE", "cursor=%00", "cursor=" + "M" * 65, "limit=0", "limit=1001"])
def test_a_page_that_cannot_be_is_422(gallery: TestClient, query: str) -> None:
    answer = gallery.get(f"/v1/galleries/g/items?{query}")

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_cursor_of_one_gallery_shows_nothing_of_it_in_another(gallery: TestClient) -> None:
    post_images(gallery, range(3))
    create_gallery(gallery, "other")
    post_one(gallery, "theirs", 7, gallery="other")
    _, cursor = page(gallery, 1)

    answer = gallery.get("/v1/galleries/other/items", params={"cursor": cursor})

    assert [item["id"] for item in answer.json()["items"]] == ["theirs"]


def test_metadata_and_label_come_back_as_they_were_given(gallery: TestClient) -> None:
    metadata = {"ü": [1, 2.5, None, {"": True}], "猫": "\u2028", "big": 2**60, "tiny": 1e-300, "text": "a\\u0000"}

    post_one(gallery, "x", 1, metadata=metadata, label="Käse & <b>")

    item = gallery.get("/v1/galleries/g/items/x").json()
    assert (item["metadata"], item["label"], item["origin"]) == (metadata, "Käse & <b>", "encoded")
    assert search(gallery, 1)["neighbors"][0]["metadata"] == metadata
    assert gallery.get("/v1/galleries/g/items").json()["items"] == [item]


def test_an_item_says_where_its_image_is_until_it_is_replaced_by_one_that_does_not(gallery: TestClient) -> None:
    uri = "s3://bucket/Käse 100%.jpg"

    post_one(gallery, "x", 1, image_uri=uri)

    assert gallery.get("/v1/galleries/g/items/x").json()["image_uri"] == uri
    assert search(gallery, 1)["neighbors"][0]["image_uri"] == uri
    post_one(gallery, "x", 1)
    assert gallery.get("/v1/galleries/g/items/x").json()["image_uri"] is None


def test_where_an_image_is_can_be_said_later_and_taken_back(gallery: TestClient) -> None:
    post_one(gallery, "x", 1)
    path, uri = "/v1/galleries/g/items/x", "s3://bucket/x.jpg"

    said = gallery.patch(path, json={"image_uri": uri})
    kept = gallery.patch(path, json={"label": "cat"})
    refused = gallery.patch(path, json={"image_uri": "x.jpg"})
    removed = gallery.patch(path, json={"image_uri": None})

    assert [answer.json()["image_uri"] for answer in (said, kept, removed)] == [uri, uri, None]
    assert refused.status_code == 422
    assert removed.json()["label"] == "cat"


@pytest.mark.parametrize("uri", ["", "cats/1.jpg", "s3://bucket/\n", "s3://" + "x" * 2_044])
def test_an_image_uri_that_cannot_be_kept_is_422(gallery: TestClient, uri: str) -> None:
    form = {"items": json.dumps([{"id": "x", "image_uri": uri}])}

    answer = gallery.post("/v1/galleries/g/images", files={"files": ("x.png", b"")}, data=form)

    assert (answer.status_code, "image_uri" in answer.json()["errors"][0]["detail"]) == (422, True)


def test_an_image_uri_with_half_a_character_is_422(gallery: TestClient) -> None:
    form = {"items": json.dumps([{"id": "x", "image_uri": "s3://bucket/\ud800"}])}

    answer = gallery.post("/v1/galleries/g/images", files={"files": ("x.png", b"")}, data=form)

    assert "'items' is not JSON" in check_problem(answer, 422)


def test_a_thumbnail_is_a_small_jpeg_of_the_image_that_is_stored_now(gallery: TestClient) -> None:
    def thumbnail() -> Image.Image:
        answer = gallery.get("/v1/galleries/g/items/x/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg"
        return Image.open(io.BytesIO(answer.content))

    def post(colour: str) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (1200, 600), colour).save(stream, "PNG")
        gallery.post("/v1/galleries/g/images", files=[("files", ("x", stream.getvalue()))])

    post("red")
    red = thumbnail()
    post("blue")
    blue = thumbnail()

    assert red.size == blue.size
    assert red.width == 2 * red.height <= 512
    assert np.asarray(red).mean((0, 1)).argmax() == 0
    assert np.asarray(blue).mean((0, 1)).argmax() == 2


def test_a_gallery_can_do_without_thumbnails(gallery: TestClient) -> None:
    create_gallery(gallery, "bare", thumbnails=False)
    post_images(gallery, [1], gallery="bare")

    answer = gallery.get("/v1/galleries/bare/items/image-1.png/thumbnail")

    assert answer.status_code == 404
    assert "has no thumbnail" in answer.json()["detail"]
    assert gallery.get("/v1/galleries/bare/items/image-1.png").status_code == 200
