"""What a page in somebody's browser may do."""

import re

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from service.api.browsers import BrowserMiddleware, content_policy
from tests.problems import check_problem

PAGE = "<!doctype html><style>p { color: red }</style><script>run('a');</script><script>run('b');</script>"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]


async def answer(request: Request) -> Response:
    if request.url.path == "/page":
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": content_policy(PAGE)})
    return PlainTextResponse(request.method)


def client(*, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> TestClient:
    app = Starlette(routes=[Route("/{path}", answer, methods=METHODS)])
    app.add_middleware(BrowserMiddleware, hosts=hosts, origins=origins)
    return TestClient(app, base_url="http://localhost:8000")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "127.0.0.1",
        "127.0.0.1:80",
        "10.1.2.3",
        "[::1]:8000",
        "[::1]",
        "Gallery",
    ],
)
def test_a_host_that_is_ours_is_served(host: str) -> None:
    assert client(hosts=("gallery",)).get("/x", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "gallery.evil",
        "",
        "localhost:x",
        "a@localhost",
    ],
)
def test_another_host_is_refused_whatever_is_asked(host: str) -> None:
    for method in ("GET", "POST"):
        check_problem(client(hosts=("gallery",)).request(method, "/x", headers={"Host": host}), 421, "ALLOWED_HOSTS")


def test_a_star_allows_any_host() -> None:
    assert client(hosts=("*",)).get("/x", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8001"},
        {"Origin": "http://localhost"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(method: str, headers: dict[str, str]) -> None:
    check_problem(client().request(method, "/x", headers=headers), 403, "GALLERY_CORS_ORIGINS")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8000"},
        {"Origin": "https://localhost:8000"},  # a proxy took TLS off
        {"Origin": "https://app.example"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_programs_our_pages_and_allowed_origins_may(headers: dict[str, str]) -> None:
    assert client(origins=("https://app.example",)).post("/x", headers=headers).text == "POST"


def test_reading_is_left_to_the_browsers_own_rule() -> None:
    assert client().get("/x", headers={"Origin": "http://evil.example"}).status_code == 200


def test_every_answer_tells_browsers_to_keep_it_in_its_place() -> None:
    asked = client()

    for found in (asked.get("/x"), asked.get("/x", headers={"Host": "evil.example"}), asked.get("/none/x")):
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert found.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_page_runs_what_is_in_it_and_nothing_else() -> None:
    policy = client().get("/page").headers["content-security-policy"]

    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert len(re.findall("'sha256-", directives["script-src"])) == 2
    assert len(re.findall("'sha256-", directives["style-src"])) == 1
    assert directives["default-src"] == "'none'"
    assert "unsafe" not in policy
