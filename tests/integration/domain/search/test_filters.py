"""A filtered search over HTTP is the whole search less what does not pass."""

import json
from typing import Any

from fastapi.testclient import TestClient

from tests.items import embedding_of, found, names, post_one
from tests.networks import image_bytes
from tests.scenario import post_images, search


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
