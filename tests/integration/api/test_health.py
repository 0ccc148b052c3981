"""A process is alive while it loads its galleries, and ready when it has them all."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.domain.indexes.faiss_engine import FaissSource
from service.settings import Settings
from tests.networks import image_bytes
from tests.scenario import create_gallery, post_images, register_version, search
from tests.served import wait_for


@pytest.fixture
def gallery(gallery: TestClient) -> TestClient:
    post_images(gallery, range(6))
    return gallery


def nearest(client: TestClient, seed: int) -> tuple[str, bool]:
    """Return the nearest item of an image, and whether it is that very image."""
    neighbor = search(client, seed, k=1)["neighbors"][0]
    return neighbor["id"], neighbor["distance"] < 1e-2


def test_a_process_that_still_loads_is_alive_takes_writes_and_refuses_searches(
    gallery: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, opening, may_open = FaissSource.open, threading.Event(), threading.Event()

    def late(*arguments: Any) -> Any:
        opening.set()
        found = opened(*arguments)  # as the rows are before the write below
        may_open.wait(60)
        return found

    monkeypatch.setattr(FaissSource, "open", late)
    monkeypatch.setattr("service.index.replica._OPENING_SECONDS", 0.05)
    app = create_app(settings.model_copy(update={"follow_every_seconds": 3600.0}))
    with TestClient(app) as second:
        opening.wait(60)  # in the background, so that no request does it
        health = second.get("/livez").status_code, second.get("/readyz").status_code
        refused = second.post("/v1/galleries/g/search", content=image_bytes(0))
        post_images(second, [20])
        may_open.set()
        wait_for(lambda: second.get("/readyz").status_code == 200)

        assert nearest(second, 20) == ("image-20.png", True)
    assert health == (200, 503)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_process_is_ready_when_every_gallery_is_loaded(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_version(client, "v1")
    create_gallery(client)
    opened, broken = FaissSource.open, threading.Event()

    def sometimes(*arguments: Any) -> Any:
        if not broken.is_set():
            raise OSError("the disk is away")
        return opened(*arguments)

    monkeypatch.setattr(FaissSource, "open", sometimes)
    with TestClient(create_app(settings)) as second:
        before = second.get("/readyz").status_code
        broken.set()
        wait_for(lambda: second.get("/readyz").status_code == 200)

    assert before == 503
