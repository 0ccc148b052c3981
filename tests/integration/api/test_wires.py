"""How requests arrive: compressed, through a proxy, from a page of another origin, and as HEAD."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from backports import zstd
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery, create_upgradable_gallery, post_images, register_version, start_upgrade

LIMIT = 300_000
ENCODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


@contextmanager
def client_of(settings: Settings, address: str = "testclient", **changes: Any) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update=changes))
    with TestClient(app, raise_server_exceptions=False, client=(address, 50_000)) as client:
        yield client


@pytest.fixture
def limited(settings: Settings) -> Iterator[TestClient]:
    """A client of a service that takes bodies of up to LIMIT bytes, with a gallery `g`."""
    with client_of(settings, max_request_bytes=LIMIT, max_json_bytes=LIMIT) as client:
        register_version(client, "v1")
        create_gallery(client)
        yield client


def form(name: str, data: bytes) -> tuple[dict[str, str], bytes]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return {"content-type": "multipart/form-data; boundary=b"}, head.encode() + data + b"\r\n--b--\r\n"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_body_that_is_compressed_is_read_as_if_it_were_not(limited: TestClient, name: str) -> None:
    headers, body = form("a.png", image_bytes(1))
    key = {"idempotency-key": name}
    sent = headers | key | {"content-encoding": name}

    in_parts = ENCODERS[name](body[:50]) + ENCODERS[name](body[50:])
    image = limited.post("/v1/galleries/g/images", headers=sent, content=in_parts)
    again = limited.post("/v1/galleries/g/images", headers=headers | key, content=body)
    gallery = limited.post(
        "/v1/galleries",
        headers={"content-encoding": name.upper(), "content-type": "application/json"},
        content=ENCODERS[name](json.dumps({"name": "other", "model_version": "v1"}).encode()),
    )

    assert image.json()["results"][0]["status"] == "created"
    assert (again.json(), again.headers["idempotent-replay"]) == (image.json(), "true")
    assert gallery.status_code == 201


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("path", ["/v1/galleries/g/embeddings", "/v1/galleries", "/v1/galleries/g/images"])
def test_a_small_body_that_stands_for_a_large_one_is_413(limited: TestClient, name: str, path: str) -> None:
    bomb = ENCODERS[name](b"x" * 50_000_000)
    assert len(bomb) < LIMIT

    answer = limited.post(path, headers={"content-encoding": name}, content=bomb)

    if path.endswith("images"):  # refused for its kind before it is read
        check_problem(answer, 400)
    else:
        assert f"at most {LIMIT} bytes" in check_problem(answer, 413)


def test_a_body_that_grows_beyond_the_limit_before_it_stands_for_anything_is_413(limited: TestClient) -> None:
    empty_members = gzip.compress(b"", mtime=0) * 20_000

    answer = limited.post("/v1/galleries/g/embeddings", headers={"content-encoding": "gzip"}, content=empty_members)

    check_problem(answer, 413)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b"{}" * 100, mtime=0)[:-9]),
        ("gzip", zlib.compress(b"{}")),
        ("gzip", b""),
        ("zstd", b"no zstd"),
        ("zstd", zstd.compress(b"{}" * 100)[:-2]),
        ("zstd", zstd.compress(b"x", options={zstd.CompressionParameter.window_log: 27})[:8] + b"\xff" * 50),
    ],
)
def test_a_body_that_is_not_what_it_says_is_400(limited: TestClient, name: str, body: bytes) -> None:
    headers = {"content-encoding": name, "content-type": "application/json"}

    answer = limited.post("/v1/galleries", headers=headers, content=body)

    assert "The body is" in check_problem(answer, 400)


@pytest.mark.parametrize("name", ["br", "deflate", "gzip, gzip", "compress"])
def test_another_encoding_is_415_with_what_is_read(limited: TestClient, name: str) -> None:
    answer = limited.post("/v1/galleries", headers={"content-encoding": name}, content=b"x")

    assert f"{name!r} is not read" in check_problem(answer, 415)
    assert answer.headers["accept-encoding"] == "gzip, zstd"


def test_what_get_answers_head_answers_without_a_body(limited: TestClient) -> None:
    post_images(limited, [0])
    for path in ("/livez", "/", "/v1/galleries/g", "/v1/galleries/g/items/image-0.png/thumbnail", "/v1/galleries/no"):
        get, head = limited.get(path), limited.head(path)

        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["content-length"] == get.headers["content-length"]
    assert limited.head("/v1/galleries/g/images").status_code == 405


def test_head_of_events_ends(client: TestClient) -> None:
    create_upgradable_gallery(client)
    post_images(client, [0])
    upgrade_id = start_upgrade(client, "v2")

    head = client.head(f"/v1/upgrades/{upgrade_id}/events")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


def test_pages_of_origins_that_are_set_may_ask_and_read_the_answers(settings: Settings) -> None:
    preflight = {"access-control-request-method": "PATCH", "access-control-request-headers": "idempotency-key"}
    with client_of(settings, cors_origins="https://a.example, https://b.example/", max_json_bytes=10) as client:
        allowed = client.options("/v1/galleries/g/items/x", headers=preflight | {"origin": "https://b.example"})
        other = client.options("/v1/galleries/g/items/x", headers=preflight | {"origin": "https://c.example"})
        refused = client.post("/v1/galleries", content=b"x" * 20, headers={"origin": "https://a.example"})

    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://b.example")
    assert "PATCH" in allowed.headers["access-control-allow-methods"]
    assert "access-control-allow-origin" not in other.headers
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (413, "https://a.example")
    assert "Location" in refused.headers["access-control-expose-headers"]


def test_without_the_setting_no_origin_is_allowed(client: TestClient) -> None:
    answer = client.get("/livez", headers={"origin": "https://a.example"})

    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("asked_below", ["", "/below/here"])
def test_addresses_in_answers_begin_with_the_path_of_the_proxy(settings: Settings, asked_below: str) -> None:
    with client_of(settings, root_path="/below/here") as client:
        client.base_url = client.base_url.copy_with(path=f"{asked_below}/")
        register_version(client, "v1")
        created = client.post("v1/galleries", json={"name": "g", "model_version": "v1"})
        post = client.post("v1/galleries/g/images", files=[("files", ("a/ü.png", image_bytes(1)))])
        found = client.post("v1/galleries/g/search", files={"file": image_bytes(1)}).json()["neighbors"][0]
        documentation = client.get("docs").text

    assert created.headers["location"] == "/below/here/v1/galleries/g"
    assert post.status_code == 200
    assert found["thumbnail_url"] == "/below/here/v1/galleries/g/items/a%2F%C3%BC.png/thumbnail"
    assert 'url: "openapi.json"' in documentation  # beside the page, wherever that is


def test_a_prefix_is_believed_of_a_proxy_that_is_trusted_alone(settings: Settings) -> None:
    body = {"name": "g", "model_version": "v1"}
    named = {"x-forwarded-prefix": "/named/"}
    with client_of(settings, "10.1.2.3", trusted_proxies="10.1.0.0/16") as client:
        register_version(client, "v1")
        believed = client.post("/v1/galleries", json=body, headers=named)
        odd = client.post("/v1/galleries", json=body | {"name": "h"}, headers={"x-forwarded-prefix": "//evil.example"})
    with client_of(settings, "10.2.2.3", trusted_proxies="10.1.0.0/16") as client:
        ignored = client.post("/v1/galleries", json=body | {"name": "i"}, headers=named)

    assert believed.headers["location"] == "/named/v1/galleries/g"
    assert (odd.headers["location"], ignored.headers["location"]) == ("/v1/galleries/h", "/v1/galleries/i")


def test_a_file_is_known_by_its_name_however_a_client_writes_it(limited: TestClient) -> None:
    ways = ['filename="Äpfel.png"', "filename*=UTF-8''%C3%84pfel.png", 'filename="=?UTF-8?Q?=C3=84pfel.png?="']
    statuses = []
    for way in ways:
        body = f'--b\r\nContent-Disposition: form-data; name="files"; {way}\r\n\r\n'.encode()
        body += image_bytes(1) + b"\r\n--b--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        (result,) = limited.post("/v1/galleries/g/images", headers=headers, content=body).json()["results"]
        statuses.append((result["id"], result["status"]))

    assert statuses == [("Äpfel.png", "created"), ("Äpfel.png", "replaced"), ("Äpfel.png", "replaced")]
