"""The console is one page at `/` that talks to the same HTTP API as everyone."""

import re

from fastapi.testclient import TestClient


def test_the_page_is_html_and_points_to_the_description_of_the_api(client: TestClient) -> None:
    page = client.get("/")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.startswith("<!doctype html>")
    assert 'href="/docs"' in page.text
    assert client.get("/docs").status_code == 200


def test_every_path_that_the_page_asks_is_one_of_the_api(client: TestClient) -> None:
    page, api = client.get("/").text, client.get("/openapi.json").json()["paths"]

    asked = {re.sub(r"\$\{.*?\}", "{name}", path) for path in re.findall(r"[\"`](/v1/[^\"`?]*)", page)}

    assert asked == {"/v1/galleries", "/v1/galleries/{name}/upgrades", "/v1/galleries/{name}/search"}
    assert asked <= set(api)


def test_the_page_is_no_part_of_the_described_api(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    assert "/" not in paths


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/").text

    assert re.findall(r"(?:https?:)?//[a-z]", page) == []
