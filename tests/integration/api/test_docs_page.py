"""`/docs` works without the internet, under a strict policy."""

import re

from fastapi.testclient import TestClient


def test_the_page_asks_nobody_else_for_anything(client: TestClient) -> None:
    page = client.get("/docs")

    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert [source for source in sources if "//" in source] == []
    assert "'unsafe" not in page.headers["content-security-policy"]


def test_what_the_page_needs_is_here(client: TestClient) -> None:
    script, style = client.get("/docs/swagger-ui-bundle.js"), client.get("/docs/swagger-ui.css")

    assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert len(script.content) > 100_000
    assert client.get("/docs/other.js").status_code == 404
