"""Posting, listing and finding items over HTTP."""

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.tables import ModelVersion
from tests.networks import image_bytes

if TYPE_CHECKING:
    from service.api.dependencies import Parts


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


def embedding_of(client: httpx.Client, seed: int) -> list[float]:
    """Return the query embedding of an image, as the service computes it."""
    assert isinstance(client, TestClient)
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # an ASGI application that is a FastAPI
    with parts.database.session_scope() as session:
        version = session.query(ModelVersion).one()
    encoder = parts.search.encoders.get(version)
    image = parts.search.encoders.images.reduce(image_bytes(seed), [encoder.preprocessing])
    embedding: list[float] = encoder.encode_embedding(lambda: [image])[0].tolist()
    return embedding
