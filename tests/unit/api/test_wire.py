"""What comes over a connection before any request is known: limits of headers, of time and of connections."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api.wire import WireLimits, limited_protocol

OK = b"HTTP/1.1 200 OK"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with how many bytes the body has."""
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count, more = count + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(count).encode()})


@contextmanager
def served(limits: WireLimits) -> Iterator[int]:
    """Serve `echo` on a port of this machine."""
    config = uvicorn.Config(echo, port=0, log_config=None, lifespan="off", http=limited_protocol(limits))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(WireLimits(connections=100, header_seconds=60, body_seconds=60)) as number:
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def answer(port: int, request: bytes) -> bytes:
    """Send all of a request, and return everything that comes until the connection is closed."""
    with closing(connect(port)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.sendall(request)
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionResetError):
        while block := connection.recv(65_536):
            found += block
    return found


def post(headers: bytes = b"", body: bytes = b"abc", address: bytes = b"/") -> bytes:
    length = str(len(body)).encode()
    first = b"POST " + address + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + length + b"\r\n"
    return first + headers + b"\r\n" + body


def test_a_request_is_answered(port: int) -> None:
    assert answer(port, post()).startswith(OK)
    assert b"\r\n3000000\r\n" in answer(port, post(body=b"x" * 3_000_000))


def test_many_requests_over_one_connection_are_answered(port: int) -> None:
    request = post().replace(b"Connection: close\r\n", b"")

    with closing(connect(port)) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65_536).startswith(OK)
        connection.sendall(request + request + post())
        assert everything(connection).count(OK) == 3


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (post(b"X-A: " + b"a" * 70_000 + b"\r\n"), 431, "at most 200 headers"),
        (post(b"X-A: " + b"a" * 20_000_000 + b"\r\n"), 431, "at most 200 headers"),
        (post(b"".join(b"X-%d: a\r\n" % number for number in range(250))), 431, "at most 200 headers"),
        (post(address=b"/?" + b"a" * 20_000), 414, "An address has at most"),
        (post(b"Host: y\r\n"), 400, "one Host header"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "one Host header"),
        (b"nonsense\r\n\r\n", 400, "no valid HTTP request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400, "no valid HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "no valid HTTP request"),
    ],
    ids=["long", "endless", "many", "address", "two hosts", "no host", "nonsense", "length", "TLS"],
)
def test_what_is_refused_is_a_problem_and_the_connection_is_closed(
    port: int, request_: bytes, status: int, sentence: str
) -> None:
    head, _, body = answer(port, request_).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert sentence in json.loads(body)["detail"]
    assert answer(port, post()).startswith(OK)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"", "headers did not come"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "headers did not come"),
        (post(body=b"x" * 10_000)[:-9_000], "body did not get on"),
    ],
    ids=["nothing", "headers", "body"],
)
def test_who_sends_no_more_is_told_and_gone(sent: bytes, sentence: str) -> None:
    with served(WireLimits(connections=100, header_seconds=0.2, body_seconds=0.2)) as port:
        found = answer(port, sent)

    assert found.startswith(b"HTTP/1.1 408 ")
    assert sentence.encode() in found


def test_a_body_that_gets_on_has_all_the_time_it_needs() -> None:
    request = post(body=b"x" * 5_000)

    limits = WireLimits(connections=100, header_seconds=5, body_seconds=2)
    with served(limits) as port, closing(connect(port)) as connection:
        for start in range(0, len(request), 500):
            connection.sendall(request[start : start + 500])
            time.sleep(0.25)
        assert everything(connection).startswith(OK)


def test_one_connection_more_than_may_be_is_503_and_takes_no_place() -> None:
    with served(WireLimits(connections=3, header_seconds=60, body_seconds=60)) as port:
        held = [connect(port) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET")  # known to the server once this is read
        refused = b""
        while not refused.startswith(b"HTTP/1.1 503 "):
            refused = answer(port, post())
        held[0].close()
        while not answer(port, post()).startswith(OK):
            pass
        for connection in held[1:]:
            connection.close()

    assert b"retry-after: 5" in refused
