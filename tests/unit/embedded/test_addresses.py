"""Where the API listens: taking a port before anybody is heard there."""

import socket
from contextlib import ExitStack

import pytest

from service.embedded.addresses import Address, ServeError
from tests.served import free_port


def bound(address: Address, stack: ExitStack) -> list[socket.socket]:
    return [stack.enter_context(listener) for listener in address.bind()]


def test_nobody_is_heard_before_the_socket_listens() -> None:
    port = free_port()

    with ExitStack() as stack:
        (listener,) = bound(Address("127.0.0.1", port), stack)
        with socket.socket() as early, pytest.raises(ConnectionRefusedError):
            early.connect(("127.0.0.1", port))
        listener.listen()
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))


def test_a_name_is_taken_at_each_of_its_addresses() -> None:
    port = free_port()
    expected = {place[4][0] for place in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}

    with ExitStack() as stack:
        taken = {listener.getsockname()[0] for listener in bound(Address("localhost", port), stack)}

    assert "127.0.0.1" in taken
    assert taken <= expected  # a machine may have no IPv6


def test_a_taken_port_and_an_address_of_another_machine_are_refused_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"Cannot listen on 127\.0\.0\.1, port {port}: Address already in use"):
            Address("127.0.0.1", port).bind()
    with pytest.raises(ServeError, match=r"Cannot listen on 192\.0\.2\.1"):
        Address("192.0.2.1", port).bind()
