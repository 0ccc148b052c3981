"""Messages between a process and the child that runs a network for it: a JSON header, and bytes.

The child runs what a stranger registered, so nothing of what it says is unpickled, and every length is checked before
memory is taken for it.
"""

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 2**20


class ConnectionLost(Exception):
    """The other side is gone."""


class BadFrame(Exception):
    """What came is no message."""


class DeadlinePassed(Exception):
    """The other side did not answer in time."""


def send_frame(
    connection: socket.socket,
    header: Mapping[str, Any],
    parts: Sequence[memoryview] = (),
    deadline: float | None = None,
) -> None:
    """Send a header and bytes; `deadline` is on the monotonic clock. Raises `ConnectionLost` and `DeadlinePassed`."""
    text = json.dumps(header).encode()
    try:
        for part in (memoryview(_LENGTH.pack(len(text)) + text), *parts):
            connection.settimeout(_seconds_left(deadline))
            connection.sendall(part)
    except TimeoutError as error:
        raise DeadlinePassed from error
    except OSError as error:
        raise ConnectionLost from error


def receive_header(connection: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """Return the next header. Raises `ConnectionLost`, `BadFrame` and `DeadlinePassed`."""
    length = bytearray(_LENGTH.size)
    receive_into(connection, memoryview(length), deadline)
    (size,) = _LENGTH.unpack(length)
    if size > _MOST_HEADER_BYTES:
        raise BadFrame(f"a header of {size} bytes")
    text = bytearray(size)
    receive_into(connection, memoryview(text), deadline)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise BadFrame("a header that is not JSON") from error
    if not isinstance(header, dict):
        raise BadFrame("a header that is no object")
    return header


def receive_into(connection: socket.socket, buffer: memoryview, deadline: float | None = None) -> None:
    """Fill a buffer of bytes. Raises `ConnectionLost` and `DeadlinePassed`."""
    done = 0
    while done < len(buffer):
        try:
            connection.settimeout(_seconds_left(deadline))
            count = connection.recv_into(buffer[done:])
        except TimeoutError as error:
            raise DeadlinePassed from error
        except OSError as error:
            raise ConnectionLost from error
        if not count:
            raise ConnectionLost
        done += count


def _seconds_left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlinePassed
    return left
