"""Reading http(s), from hosts that the operator listed: no redirect is followed, no proxy or cookie used.

A listed name is resolved here, and the connection goes to the very address that was checked: a name that leads to a
private or loopback address is refused, whenever it comes to lead there. One that is to be reached at such an address is
listed by the address itself.
"""

import ipaddress
import math
import socket
import ssl
import time
from collections.abc import Iterable
from contextvars import ContextVar
from functools import cached_property
from urllib.parse import urlsplit

import httpcore
import httpx

from service.image_sources.errors import ImageAway, ImageNotRead, LocationNotAllowed
from service.image_sources.locations import Location

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONNECTIONS = 64
# When the read under way in this thread has to be over, by the monotonic clock: what each wait for the network obeys.
_ends: ContextVar[float] = ContextVar("ends", default=math.inf)


class WebReader:
    """Reads images over http(s); connections are kept for a few seconds. Safe to use from many threads."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @cached_property
    def _pool(self) -> httpcore.ConnectionPool:
        """Made at the first read: most services read no image over the web, and need not read the certificates."""
        return httpcore.ConnectionPool(
            httpx.create_ssl_context(),
            max_connections=_CONNECTIONS,
            keepalive_expiry=5.0,
            network_backend=_CheckedNetwork(),
        )

    def read(self, location: Location, most_bytes: int) -> bytes:
        """Return up to `most_bytes` of a body. Raises `ImageNotRead` (422), within the time limit; only the system's
        resolver of names keeps to its own."""
        token = _ends.set(time.monotonic() + self._seconds)
        try:
            return self._read(location, most_bytes)
        except httpcore.TimeoutException as error:
            raise ImageAway(f"The host did not answer in full within {self._seconds:g} s.") from error
        except httpcore.RemoteProtocolError as error:
            raise ImageAway("The host broke off its answer, or sent none that is HTTP.") from error
        except (httpcore.NetworkError, OSError) as error:
            raise ImageAway(f"The host cannot be reached: {error}.") from error
        except httpcore.LocalProtocolError as error:
            raise ImageNotRead(f"The image cannot be asked for: {error}.") from error
        finally:
            _ends.reset(token)

    def _read(self, location: Location, most_bytes: int) -> bytes:
        host, port = _host_and_port(location)
        url = httpcore.URL(
            scheme=location.scheme.encode(),
            host=host.encode(),
            port=port,
            target=(location.path + location.query).encode(),
        )
        headers = [("Host", location.authority), ("Accept", "image/*,*/*"), ("Accept-Encoding", "identity")]
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._seconds)
        data = bytearray()
        with self._pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response:
            _check_status(response.status)
            for block in response.iter_stream():
                data += block
                if len(data) >= most_bytes:
                    break
        return bytes(data[:most_bytes])


def _host_and_port(location: Location) -> tuple[str, int | None]:
    parts = urlsplit(f"//{location.authority}")
    assert parts.hostname is not None
    return parts.hostname, parts.port


def _check_status(status: int) -> None:
    if status == 200:
        return
    if 300 <= status < 400:
        raise ImageNotRead(f"The host redirects ({status}), which is not followed: give the final address.")
    if status in (401, 403):
        raise ImageNotRead(f"The host refuses the image ({status}).")
    if status in (404, 410):
        raise ImageNotRead(f"The host has no such image ({status}).")
    if status in (408, 429) or status >= 500:
        raise ImageAway(f"The host cannot give the image now ({status}).")
    raise ImageNotRead(f"The host answers {status}, not the image.")


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and makes every wait end when the read has to."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the host's addresses that answers. Raises `LocationNotAllowed` (422)."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in _addresses(host, port):
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, _remaining(timeout), local_address, socket_options
                )
                return _TimedStream(stream)
            except httpcore.ConnectError as error:
                failure = error
        raise failure


def _addresses(host: str, port: int) -> list[str]:
    """Return where a host is, all of it public, unless the host is an address itself."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(is_public(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
        raise LocationNotAllowed(
            f"The name {host!r} leads to a private address: an operator who means it lists the address in"
            " GALLERY_IMAGES instead of the name."
        )
    return addresses


def is_public(address: _Address) -> bool:
    """Return whether an address is one of the public internet, and so is an IPv4 address that it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _remaining(timeout: float | None) -> float:
    remaining = min(_ends.get() - time.monotonic(), math.inf if timeout is None else timeout)
    if remaining <= 0:
        raise httpcore.ReadTimeout("the time is over")
    return remaining


class _TimedStream(httpcore.NetworkStream):
    """A connection of which no single wait outlasts the read that it serves."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _remaining(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _remaining(timeout)))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
