"""Metrics of an API process: on a port of its own, and not on one that several share."""

import socket

import httpx
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.served import free_port


def with_own(settings: Settings, **own: int) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=own)))


def test_a_process_says_the_same_on_its_own_port_as_at_its_metrics(settings: Settings) -> None:
    port = free_port()

    with with_own(settings, api_metrics_port=port) as client:
        client.get("/v1/galleries")
        apart = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        shown = client.get("/metrics").text

    def names(text: str) -> set[str]:
        return {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}

    assert 'http_requests_total{handler="/v1/galleries",method="GET",status="200"}' in apart
    assert "gallery_database_up" in apart
    assert names(apart) == names(shown)


def test_the_port_is_free_again_when_the_process_has_ended(settings: Settings) -> None:
    port = free_port()

    for _ in range(2):
        with with_own(settings, api_metrics_port=port):
            assert httpx.get(f"http://127.0.0.1:{port}").status_code == 200


def test_a_process_works_without_where_the_port_is_taken(settings: Settings) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        with_own(settings, api_metrics_port=taken.getsockname()[1]) as client,
    ):
        assert client.get("/livez").status_code == 200


def test_a_port_that_several_share_refuses_to_show_those_of_one(settings: Settings) -> None:
    with with_own(settings, processes=3) as client:
        refused = client.get("/metrics")

    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:gallery-upgrade:metrics-of-one"
    assert "3 processes share this port" in refused.json()["detail"]
    assert "GALLERY_API_METRICS_PORT" in refused.json()["detail"]
