"""Items over HTTP: pages, metadata, thumbnails, replacing and deleting, and that every way to search finds them."""

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.api.dependencies import Parts
from service.tables import ModelVersion
from tests.networks import image_bytes
from tests.scenario import create_gallery, import_vectors, post_images, register_version, search

ROUNDING = 1e-2  # an image's distance from itself as stored in float16 is below, from any other image above


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    register_version(client, "v1")
    create_gallery(client)
    return client


def post_one(client: TestClient, id_: str, seed: int, gallery: str = "g", **description: Any) -> str:
    """Post one image and return what became of it."""
    answer = client.post(
        f"/v1/galleries/{gallery}/images",
        files=[("files", ("file", image_bytes(seed)))],
        data={"items": json.dumps([{"id": id_, **description}])},
    )
    assert answer.status_code == 200, answer.text
    status: str = answer.json()["results"][0]["status"]
    return status


def page(client: TestClient, limit: int, cursor: str | None = None) -> tuple[list[str], str | None]:
    parameters = {"limit": limit} | ({"cursor": cursor} if cursor else {})
    answer = client.get("/v1/galleries/g/items", params=parameters)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]], answer.json()["next_cursor"]


def names(*seeds: int) -> list[str]:
    return [f"image-{seed}.png" for seed in seeds]


def found(answer: dict[str, Any]) -> list[str]:
    return [neighbor["id"] for neighbor in answer["neighbors"]]


def check_same(neighbors: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Both are the same; distances may differ in their last bits, by how many are computed together."""
    assert [n | {"distance": 0} for n in neighbors] == [n | {"distance": 0} for n in others]
    assert [n["distance"] for n in neighbors] == pytest.approx([n["distance"] for n in others], abs=1e-5)


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


def filtered(client: TestClient, condition: dict[str, Any], k: int = 20) -> list[str]:
    """Return what a search with a filter finds; the form, the raw body and vectors must agree."""
    text = json.dumps(condition)
    path = "/v1/galleries/g/search"
    form = client.post(path, files={"file": ("q", image_bytes(0))}, data={"k": str(k), "filter": text})
    raw = client.post(path, params={"k": k, "filter": text}, content=image_bytes(0))
    vectors = client.post(f"{path}/vectors", json={"vectors": [embedding_of(client, 0)], "k": k, "filter": condition})
    answers = [form.json()["neighbors"], raw.json()["neighbors"], vectors.json()["neighbors"][0]]
    ids = [[neighbor["id"] for neighbor in answer] for answer in answers]
    assert ids[0] == ids[1] == ids[2]
    return ids[0]


def embedding_of(client: httpx.Client, seed: int) -> list[float]:
    """Return the query embedding of an image, as the service computes it."""
    assert isinstance(client, TestClient)
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # an ASGI application that is a FastAPI
    with parts.database.session_scope() as session:
        version = session.query(ModelVersion).one()
    image = parts.encoders.images.decode(image_bytes(seed))
    embedding: list[float] = parts.encoders.get(version).encode_embedding([image])[0].tolist()
    return embedding


def test_a_filtered_search_is_the_whole_search_less_what_does_not_pass(gallery: TestClient) -> None:
    post_images(gallery, range(12))
    everything = found(search(gallery, 0, k=12))

    passing = {"image-1.png", "image-4.png", "image-7.png", "image-10.png"}
    assert filtered(gallery, {"label": "class 1"}) == [id_ for id_ in everything if id_ in passing]
    assert (
        filtered(gallery, {"metadata.seed": {"gte": 4}}, k=3)
        == [id_ for id_ in everything if id_ not in names(0, 1, 2, 3)][:3]
    )
    assert filtered(gallery, {"id": {"ne": "image-0.png"}}) == everything[1:]
    assert filtered(gallery, {"label": "none such"}) == []


def test_a_filter_sees_what_was_written_last(gallery: TestClient) -> None:
    post_images(gallery, range(3))
    post_one(gallery, "image-1.png", 1, label="moved")
    gallery.delete("/v1/galleries/g/items/image-2.png")

    assert filtered(gallery, {"label": "moved"}) == ["image-1.png"]
    assert filtered(gallery, {"label": {"in": ["class 1", "class 2"]}}) == []


def test_an_image_and_its_vector_get_the_same_answer(gallery: TestClient) -> None:
    post_images(gallery, range(8))
    queries = [embedding_of(gallery, seed) for seed in (3, 40)]

    by_image = [search(gallery, seed, k=8) for seed in (3, 40)]
    by_vectors = gallery.post("/v1/galleries/g/search/vectors", json={"vectors": queries, "k": 8}).json()

    for neighbors, answer in zip(by_vectors["neighbors"], by_image, strict=True):
        check_same(neighbors, answer["neighbors"])
    assert {key: by_vectors[key] for key in ("model_version", "generation", "revision")} == {
        key: by_image[0][key] for key in ("model_version", "generation", "revision")
    }
    assert found(by_image[0])[0] == "image-3.png"


def test_a_gallery_says_how_many_items_it_has_whatever_was_written(gallery: TestClient) -> None:
    def counts() -> tuple[int, int]:
        listed = gallery.get("/v1/galleries/g/items?limit=1000").json()["items"]
        return gallery.get("/v1/galleries/g").json()["items"], len(listed)

    post_images(gallery, [1, 2, 3, 4])
    import_vectors(gallery, ["image-3.png", "vector-1", "vector-2"])
    assert counts() == (6, 6)
    for _ in range(2):
        gallery.delete("/v1/galleries/g/items/vector-1")
    gallery.delete("/v1/galleries/g/items/image-1.png")
    post_images(gallery, [1])
    assert gallery.post("/v1/galleries/g/images", files=[("files", ("bad", b"no image"))]).status_code == 422
    assert counts() == (5, 5)
