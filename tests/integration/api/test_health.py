"""A process is alive while it loads its galleries, and ready when it has them all."""

import threading

import pytest
from fastapi.testclient import TestClient

from service.api.dependencies import Parts
from service.app import create_app
from service.settings import Settings
from tests.fakes import Call
from tests.networks import image_bytes
from tests.replicas import watched_parts
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
    gallery: TestClient, settings: Settings
) -> None:
    parts, source = watched_parts(settings.model_copy(update={"follow_every_seconds": 3600.0}))
    opened, may_open = threading.Event(), threading.Event()

    def wait_after_opening(call: Call) -> None:
        if call == "open":
            opened.set()
            may_open.wait(60)

    source.after = wait_after_opening
    with TestClient(create_app(settings, lambda _: parts)) as second:
        opened.wait(60)  # in the background, so that no request does it, and with the rows before the write below
        health = second.get("/livez").status_code, second.get("/readyz").status_code
        refused = second.post("/v1/galleries/g/search", content=image_bytes(0))
        post_images(second, [20])
        may_open.set()
        wait_for(lambda: second.get("/readyz").status_code == 200)

        assert nearest(second, 20) == ("image-20.png", True)
    assert health == (200, 503)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_process_is_ready_when_every_gallery_is_loaded(client: TestClient, settings: Settings) -> None:
    register_version(client, "v1")
    create_gallery(client)
    parts, source = watched_parts(settings)
    is_back = threading.Event()

    def fail_to_open(call: Call) -> None:
        if call == "open" and not is_back.is_set():
            raise OSError("the disk is away")

    source.before = fail_to_open
    with TestClient(create_app(settings, lambda _: parts)) as second:
        before = second.get("/readyz").status_code
        is_back.set()
        wait_for(lambda: second.get("/readyz").status_code == 200)

    assert before == 503


def test_a_gallery_that_cannot_be_loaded_was_tried_and_keeps_no_other_from_being_served(
    gallery: TestClient, settings: Settings
) -> None:
    create_gallery(gallery, "other")
    parts, source = watched_parts(settings)
    opened: list[Call] = []

    def fail_to_open_the_first(call: Call) -> None:
        if call == "open":
            opened.append(call)
            if len(opened) % 2:
                raise OSError("its file is away")

    def wait_until_tried(parts: Parts) -> None:
        wait_for(lambda: parts.replicas.has_tried)

    source.before = fail_to_open_the_first
    with TestClient(create_app(settings, lambda _: parts, wait_until_tried)):
        tried = len(opened)

    assert tried >= 2
