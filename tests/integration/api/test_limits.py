"""A body over the limit is 413 however it arrives, and every answer carries a request id."""

import asyncio
import http.client
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from service.api.limits import OF_FILES
from service.app import create_app
from service.settings import Settings
from tests.networks import image_bytes
from tests.scenario import create_gallery, register_version

REFERENCES = "/v1/galleries/{name}/images/references"
LIMIT = 50_000
BLOCK = b"x" * 10_000
PROBLEM = "application/problem+json"

# Every way in which a body is read: a form, a raw table, a raw image, JSON, and before an Idempotency-Key is looked up.
MULTIPART = "multipart/form-data; boundary=b"
FORM_START = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
READERS: dict[str, tuple[str, dict[str, str], bytes]] = {
    "form": ("/v1/galleries/g/images", {"content-type": MULTIPART}, FORM_START),
    "table": ("/v1/galleries/g/embeddings", {}, b"PAR1"),
    "image": ("/v1/galleries/g/search", {"content-type": "image/png"}, b"\x89PNG\r\n\x1a\n"),
    "json": ("/v1/galleries", {"content-type": "application/json"}, b'{"name": "'),
    "json where files may come": ("/v1/transformations/train", {"content-type": "application/json"}, b'{"dataset": "'),
    "keyed": ("/v1/galleries/g/images", {"content-type": MULTIPART, "idempotency-key": "k"}, FORM_START),
}


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    """An application that runs, with a gallery `g`."""
    app = create_app(settings.model_copy(update={"max_request_bytes": LIMIT}))
    with TestClient(app, raise_server_exceptions=False) as client:
        register_version(client, "v1")
        create_gallery(client)
        yield app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def post_blocks(app: FastAPI, path: str, headers: dict[str, str], blocks: AsyncIterator[bytes]) -> httpx.Response:
    """POST block by block, straight to the application: it gets a block only when it asks for one."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
            return await client.post(path, headers=headers, content=blocks)

    return asyncio.run(post())


def check_too_large(answer: httpx.Response) -> None:
    assert answer.status_code == 413, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["detail"] == f"A request's body has at most {LIMIT} bytes."
    assert answer.headers["x-request-id"]


def test_a_body_that_is_declared_too_large_is_not_read(app: FastAPI) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    for path, headers, _ in READERS.values():
        check_too_large(post_blocks(app, path, {**headers, "content-length": str(LIMIT + 1)}, unread()))


def test_a_streamed_body_is_read_up_to_the_limit_and_stores_nothing(app: FastAPI, client: TestClient) -> None:
    for path, headers, start in READERS.values():
        given: list[bytes] = []
        answer = post_blocks(app, path, headers, endless(start, given))

        check_too_large(answer)
        assert len(given) == LIMIT // len(BLOCK)  # with the start, the last one is over the limit
    assert client.get("/v1/galleries/g").json()["revision"] == 0
    assert len(client.get("/v1/galleries").json()["items"]) == 1


async def endless(start: bytes, given: list[bytes]) -> AsyncIterator[bytes]:
    """Give a body that never ends, and note in `given` what was asked for."""
    yield start
    while True:
        given.append(BLOCK)
        yield BLOCK


def test_a_body_of_json_has_a_limit_of_its_own(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"max_json_bytes": LIMIT}))
    with TestClient(app) as client:
        register_version(client, "v1")
        create_gallery(client)
        answers = {
            name: client.post(path, headers=headers, content=start.ljust(LIMIT + 1))
            for name, (path, headers, start) in READERS.items()
        }

    assert [name for name, answer in answers.items() if answer.status_code == 413] == [
        "json",
        "json where files may come",
    ]
    check_too_large(answers["json"])


def test_every_route_whose_body_is_json_or_a_list_of_references_has_the_limit_of_json(app: FastAPI) -> None:
    bodies = {
        path: set(operation["requestBody"]["content"])
        for path, operations in app.openapi()["paths"].items()
        for operation in operations.values()
        if "requestBody" in operation
    }

    of_json = {path for path, types in bodies.items() if types == {"application/json"}}
    # A list of references is held in memory in each of its forms.
    assert {path for path in bodies if not OF_FILES.fullmatch(path)} == of_json | {REFERENCES}


def test_a_key_whose_body_was_too_large_can_be_used_with_one_that_is_not(app: FastAPI, client: TestClient) -> None:
    files = {"files": ("x.png", image_bytes(1))}
    too_large = client.post("/v1/galleries/g/images", files={"files": BLOCK * 6}, headers={"idempotency-key": "k"})

    answer = client.post("/v1/galleries/g/images", files=files, headers={"idempotency-key": "k"})

    assert too_large.status_code == 413
    assert answer.json()["results"][0]["status"] == "created"


def test_a_body_as_large_as_the_limit_is_accepted(client: TestClient) -> None:
    headers, body = {"content-type": "application/json"}, b'{"vectors": [[1, 1, 1, 1, 1, 1]]}'

    answers = [
        client.post("/v1/galleries/g/search/vectors", content=body.ljust(size), headers=headers)
        for size in (LIMIT, LIMIT + 1)
    ]

    assert [answer.status_code for answer in answers] == [200, 413]


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Serve with uvicorn; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    socket = server.config.bind_socket()
    socket.listen()  # from here on a connection waits until the server takes it
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_streams_too_much_to_the_server_reads_413_and_others_are_served(app: FastAPI) -> None:
    path, headers, _ = READERS["table"]
    with listening(app) as port:
        sender = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        sender.request("POST", path, iter([BLOCK] * 20), headers, encode_chunked=True)
        too_large = sender.getresponse()
        other = httpx.get(f"http://127.0.0.1:{port}/v1/galleries/g")
        sender.close()

    assert (too_large.status, too_large.getheader("content-type")) == (413, PROBLEM)
    assert other.status_code == 200


def test_a_sane_request_id_is_taken(client: TestClient) -> None:
    for path in ("/livez", "/v1/galleries/none", "/v1/galleries/%20", "/nowhere"):
        assert client.get(path, headers={"x-request-id": "Client-1.2_3"}).headers["x-request-id"] == "Client-1.2_3"


def test_another_request_id_is_replaced_by_a_new_one(client: TestClient) -> None:
    given = [b"", b"a b", b"x" * 65, b"a\tb", b"\xe9", b'"};drop']

    answers = [client.get("/livez", headers=[(b"x-request-id", identifier)]) for identifier in given]

    identifiers = {answer.headers["x-request-id"] for answer in answers}
    assert len(identifiers) == len(given)
    assert all(len(identifier) == 32 and identifier.isalnum() for identifier in identifiers)


def test_a_request_id_that_is_a_key_is_not_kept(client: TestClient) -> None:
    key = f"gu_abcdefgh_{'x' * 43}"

    answer = client.get("/livez", headers={"X-Request-ID": key})

    assert key not in answer.headers["X-Request-ID"]


def test_an_unexpected_failure_is_a_problem_whose_id_finds_its_reason_in_the_log(
    app: FastAPI, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with app.state.parts.database.session_scope() as session:
        session.execute(text("DROP TABLE jobs CASCADE"))

    answer = client.get("/v1/jobs", headers={"x-request-id": "find-me"})

    assert (answer.status_code, answer.headers["connection"]) == (500, "close")
    assert answer.headers["content-type"] == PROBLEM
    assert "jobs" not in answer.json()["detail"]
    assert answer.headers["x-request-id"] == "find-me"
    logged = [record for record in caplog.records if "request_id=find-me" in record.getMessage()]
    assert [type(record.exc_info[1]) for record in logged if record.exc_info] == [ProgrammingError]
