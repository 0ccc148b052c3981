"""Where a client is connected to: what can never be asked is said at once."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from gallery_upgrade import AsyncClient, Client
from gallery_upgrade.connection import connection_options
from gallery_upgrade.core.exchange import Retries
from gallery_upgrade.errors import BadConnection, NotTheService, ServiceAway

ONE_TRY = Retries(deadline_seconds=0.0)
A_DAY = Retries(deadline_seconds=86_400.0)


@pytest.fixture
def speaks_no_tls() -> Iterator[int]:
    """The port of somebody who answers whatever comes in plain text."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        except OSError:
            pass  # the listener was shut down

    thread = threading.Thread(target=answer)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "notaurl",
        "localhost:8000",
        "ftp://localhost",
        "http://",
        "http:///galleries",
        "http://[::1",
        "http://localhost:port",
        "http://localhost:99999",
        "http://\udcff",
        "http://local\nhost",
    ],
    ids=ascii,
)
def test_a_url_at_which_nothing_can_be_asked_makes_no_client(url: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(BadConnection, match="is not the address of a service"):
            client(url)


@pytest.mark.parametrize("key", ["two\nlines", "two\r\nlines", "schlüssel", "nul\0"], ids=ascii)
def test_a_key_that_no_header_may_have_makes_no_client_and_is_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="The API key cannot be one") as raised:
        Client("http://localhost", key=key)

    assert key not in str(raised.value)


def test_white_space_around_a_url_and_a_key_is_none_of_theirs() -> None:
    environment = {"GALLERY_URL": "https://[::1]:8000/below/\n", "GALLERY_API_KEY": " secret\r\n"}

    url, headers = connection_options(None, None, environment)

    assert (url, headers["Authorization"]) == ("https://[::1]:8000/below", "Bearer secret")
    assert "Authorization" not in connection_options(None, "\n", environment)[1]


def test_where_no_tls_is_spoken_nothing_is_tried_again(speaks_no_tls: int) -> None:
    url = f"https://127.0.0.1:{speaks_no_tls}"

    async def ask() -> None:
        async with AsyncClient(url, retries=A_DAY) as client:
            await client.api.list_galleries()

    with Client(url, retries=A_DAY) as client, pytest.raises(NotTheService, match="SSL"):
        client.api.list_galleries()
    with pytest.raises(NotTheService, match="SSL"):
        asyncio.run(ask())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_where_nobody_listens_somebody_may_later(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with Client(f"{scheme}://127.0.0.1:{port}", retries=ONE_TRY) as client, pytest.raises(ServiceAway):
        client.api.list_galleries()


def test_a_connection_that_is_cut_while_tls_begins_may_be_had_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=cut)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, retries=ONE_TRY) as client, pytest.raises(ServiceAway):
            client.api.list_galleries()
        thread.join()
