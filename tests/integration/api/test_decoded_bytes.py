"""One budget of decoded bytes for all requests: who finds it taken is told to come back, and nothing is stored."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.networks.decoded_bytes import DecodedBytes
from service.settings import Settings
from tests.image_files import TURNED_HEIC, encoded, noise, png_of_zeros
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery, register_version


def budget_of(client: TestClient) -> DecodedBytes:
    budget: DecodedBytes = client.app.state.parts.search.encoders.images.budget  # type: ignore[attr-defined]
    return budget


def client_with(settings: Settings, **changes: Any) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=changes)))


def test_search_and_ingest_are_429_while_others_hold_the_memory(settings: Settings) -> None:
    with client_with(settings, decoded_wait_seconds=0.01) as client:
        register_version(client, "v1")
        create_gallery(client)

        with budget_of(client).hold(settings.decoded_bytes):
            refused = [
                client.post("/v1/galleries/g/search", content=image_bytes(1)),
                client.post("/v1/galleries/g/images", files={"files": ("x", image_bytes(1))}),
            ]

        for answer in refused:
            check_problem(answer, 429, "try again later")
            assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/v1/galleries/g").json()["items"] == 0
        assert client.post("/v1/galleries/g/images", files={"files": ("x", image_bytes(1))}).status_code == 200


def test_an_image_over_the_whole_budget_is_rejected_alone_and_by_name(settings: Settings) -> None:
    with client_with(settings, decoded_bytes=2**20) as client:
        register_version(client, "v1")
        create_gallery(client)

        files = [("files", ("bomb", png_of_zeros(4_000, 4_000))), ("files", ("good", image_bytes(1)))]
        results = client.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [(result["id"], result["status"]) for result in results] == [("bomb", "rejected"), ("good", "created")]
    assert "GALLERY_DECODED_BYTES" in results[0]["error"]


def test_requests_side_by_side_share_the_budget_and_all_succeed(settings: Settings) -> None:
    photograph = encoded(noise(640, 480), "JPEG")  # 1.2 million bytes of pixels
    with client_with(settings, decoded_bytes=2 * 2**20) as client:
        register_version(client, "v1")
        create_gallery(client)
        statuses: list[int] = []

        def ingest(request: int) -> None:
            files = [("files", (f"{request}-{number}", photograph)) for number in range(10)]
            statuses.append(client.post("/v1/galleries/g/images", files=files).status_code)

        threads = [threading.Thread(target=ingest, args=(request,)) for request in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert statuses == [200] * 6
        assert client.get("/v1/galleries/g").json()["items"] == 60


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg"])
def test_a_photograph_of_an_iphone_is_stored_and_found_whatever_its_name(gallery: TestClient, name: str) -> None:
    answer = gallery.post("/v1/galleries/g/images", files={"files": (name, TURNED_HEIC)})

    assert answer.json()["results"] == [{"id": name, "status": "created", "error": None}]
    found = gallery.post("/v1/galleries/g/search", content=TURNED_HEIC).json()["neighbors"]
    assert found[0]["id"] == name
    assert found[0]["distance"] == pytest.approx(0, abs=0.02)
