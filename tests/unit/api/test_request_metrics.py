"""Requests are counted by the route that took them, never by their path."""

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from service.app import create_app
from service.settings import Settings
from tests.fakes import connectionless_parts


@pytest.fixture
def client() -> TestClient:
    """A client of an application that has not connected to anything."""
    app = create_app(Settings(allowed_hosts="testserver"))
    app.state.parts = connectionless_parts()
    return TestClient(app, raise_server_exceptions=False)


def count(handler: str, method: str, status: int) -> float:
    labels = {"handler": handler, "method": method, "status": str(status)}
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0.0


def timed(handler: str, method: str) -> float:
    labels = {"handler": handler, "method": method}
    return REGISTRY.get_sample_value("http_request_duration_seconds_count", labels) or 0.0


@pytest.mark.parametrize(
    ("method", "path", "content", "counted"),
    [
        ("GET", "/livez", None, ("/livez", "GET", 200)),
        ("HEAD", "/livez", None, ("/livez", "HEAD", 200)),
        ("PUT", "/livez", None, ("/livez", "PUT", 405)),
        # What is wrong with its body is found before its handler begins.
        ("POST", "/v1/galleries/one/search/items", b"{", ("/v1/galleries/{name}/search/items", "POST", 422)),
        ("POST", "/v1/galleries/two/search/items", b"{", ("/v1/galleries/{name}/search/items", "POST", 422)),
        # It fails outside of every middleware.
        ("GET", "/v1/upgrades/7", None, ("/v1/upgrades/{upgrade_id}", "GET", 500)),
        ("GET", "/v1/nothing/a", None, ("none", "GET", 404)),
        ("BREW", "/nothing/b", None, ("none", "other", 404)),
    ],
)
def test_a_request_is_counted_and_timed_under_its_route(
    client: TestClient, method: str, path: str, content: bytes | None, counted: tuple[str, str, int]
) -> None:
    before = count(*counted), timed(*counted[:2])

    status = client.request(method, path, content=content).status_code

    assert status == counted[2]
    assert (count(*counted), timed(*counted[:2])) == (before[0] + 1, before[1] + 1)


def test_a_request_from_a_foreign_page_is_counted_without_a_route(client: TestClient) -> None:
    before = count("none", "GET", 421)

    client.get("/livez", headers={"Host": "evil.example"})

    assert count("none", "GET", 421) == before + 1


def test_no_label_has_a_path(client: TestClient) -> None:
    client.get("/v1/galleries/very-private-name/items/7")
    client.get("/very-private-name")

    labels = {label for family in REGISTRY.collect() for sample in family.samples for label in sample.labels.values()}
    assert not [label for label in labels if "very-private-name" in label]
