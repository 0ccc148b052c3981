"""Reading over http from a server that misbehaves in every way that is known."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.image_sources.errors import ImageAway, ImageNotRead, LocationNotAllowed
from service.image_sources.source import ImageSource
from service.image_sources.web import is_public
from service.settings import Settings


class RawServer:
    """Answers every request on a socket of 127.0.0.1 with the same blocks, `pause` apart; keeps the requests."""

    def __init__(self, blocks: list[bytes], pause: float, repeat: bool, context: ssl.SSLContext | None) -> None:
        self.requests: list[bytes] = []
        self._context = context
        self._blocks, self._pause, self._repeat = blocks, pause, repeat
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), self._secured(connection) as connection:
            self.requests.append(connection.recv(65_536))
            while True:
                for block in self._blocks:
                    connection.sendall(block)
                    time.sleep(self._pause)
                if not self._repeat:
                    return

    def _secured(self, connection: socket.socket) -> socket.socket:
        return connection if self._context is None else self._context.wrap_socket(connection, server_side=True)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def _server(
    *blocks: bytes, pause: float = 0.0, repeat: bool = False, context: ssl.SSLContext | None = None
) -> Iterator[RawServer]:
    server = RawServer(list(blocks), pause, repeat, context)
    try:
        yield server
    finally:
        server.close()


def _source(server: RawServer, host: str = "127.0.0.1", seconds: float = 5.0) -> ImageSource:
    return ImageSource(
        Settings(images=f"http://{host}:{server.port}/cats/", max_image_bytes=1_000, image_read_seconds=seconds)
    )


def test_an_image_is_read_from_a_host_that_is_listed_by_its_address() -> None:
    with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ncat") as server:
        data = _source(server).read(f"HTTP://127.0.0.1:{server.port}/cats/ä b.jpg?sign=1%2F2")

    assert data == b"cat"
    assert server.requests[0].startswith(b"GET /cats/%C3%A4%20b.jpg?sign=1%2F2 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}".encode() in server.requests[0]


def test_a_listed_name_that_leads_to_this_machine_is_refused_before_it_is_reached() -> None:
    with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ncat") as server:
        for host in ("localhost", "127.1", "2130706433", "0x7f.1"):
            with pytest.raises(LocationNotAllowed, match="private address"):
                _source(server, host).read(f"http://{host}:{server.port}/cats/1.jpg")

    assert server.requests == []


def test_a_redirect_is_not_followed() -> None:
    with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret") as target:
        location = f"http://127.0.0.1:{target.port}/private".encode()
        answer = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
        with _server(answer) as server, pytest.raises(ImageNotRead, match=r"redirects \(302\)"):
            _source(server).read(f"http://127.0.0.1:{server.port}/cats/1.jpg")

    assert target.requests == []


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (401, ImageNotRead, "refuses the image"),
        (403, ImageNotRead, "refuses the image"),
        (404, ImageNotRead, "has no such image"),
        (206, ImageNotRead, "answers 206"),
        (429, ImageAway, "cannot give the image now"),
        (503, ImageAway, "cannot give the image now"),
    ],
)
def test_each_status_is_said_and_only_what_may_pass_is_called_so(
    status: int, error: type[ImageNotRead], sentence: str
) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
    with _server(answer) as server, pytest.raises(ImageNotRead, match=sentence) as raised:
        _source(server).read(f"http://127.0.0.1:{server.port}/cats/1.jpg")

    assert type(raised.value) is error


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nonly ",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
def test_a_body_that_breaks_off_and_what_is_not_http_are_errors(answer: bytes) -> None:
    with _server(answer) as server, pytest.raises(ImageAway):
        _source(server).read(f"http://127.0.0.1:{server.port}/cats/1.jpg")


def test_an_endless_body_is_read_up_to_the_limit_only() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    with _server(head, repeat=True) as server, pytest.raises(ImageNotRead, match="larger than 1,000 bytes"):
        _source(server).read(f"http://127.0.0.1:{server.port}/cats/1.jpg")


@pytest.mark.parametrize(
    "blocks",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", *[b"x"] * 100],
        [b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 100],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 100,
        [b"", *[b""] * 100],
    ],
)
def test_a_host_that_dribbles_is_given_up_when_its_time_is_over(blocks: list[bytes]) -> None:
    began = time.monotonic()
    with _server(*blocks, pause=0.05, repeat=True) as server, pytest.raises(ImageAway, match=r"within 0\.3 s"):
        _source(server, seconds=0.3).read(f"http://127.0.0.1:{server.port}/cats/1.jpg")

    assert time.monotonic() - began < 5  # not the seconds that all of it would take


def test_a_host_that_is_away_is_said() -> None:
    with _server() as server:
        source = _source(server)
    server.close()

    with pytest.raises(ImageAway):
        source.read(f"http://127.0.0.1:{server.port}/cats/1.jpg")


def test_https_is_read_from_who_has_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = _certificate_of_this_host(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ncat", context=context) as server:
        uri, settings = f"https://127.0.0.1:{server.port}/1.jpg", Settings(images=f"https://127.0.0.1:{server.port}/")

        with pytest.raises(ImageAway, match="certificate"):
            ImageSource(settings).read(uri)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ImageSource(settings).read(uri) == b"cat"


def _certificate_of_this_host(folder: Path) -> Path:
    """Make a certificate of 127.0.0.1 that is signed by itself, with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "this host")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    own_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(own_key + certificate.public_bytes(serialization.Encoding.PEM))
    return file


def test_a_compressed_answer_is_not_inflated() -> None:
    body = b"\x1f\x8b" + b"\0" * 50
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with _server(head + body) as server:
        assert _source(server).read(f"http://127.0.0.1:{server.port}/cats/1.jpg") == body


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_of_this_machine_and_its_networks_are_not_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
