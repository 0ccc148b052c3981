"""Where a client is connected to, and how."""

import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from gallery_upgrade.errors import BadConnection

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 10.0


def connection_options(url: str | None, key: str | None, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the URL of the service and the headers of every request: as given, or as the environment says; white space
    around them, such as the line break at the end of a file, is none of theirs.

    Raises `BadConnection` for a URL at which nothing can be asked, and for a key that no header may have.
    """
    key = (environment.get("GALLERY_API_KEY", "") if key is None else key).strip()
    url = (url or environment.get("GALLERY_URL") or DEFAULT_URL).strip().rstrip("/")
    _check_url(url)
    headers = {"User-Agent": "gallery-upgrade-client"}
    if key:
        if not (key.isascii() and key.isprintable()):
            raise BadConnection("The API key cannot be one: it has a line break, or a character that is not ASCII.")
        headers["Authorization"] = f"Bearer {key}"
    return url, headers


def http_options(url: str, headers: dict[str, str], timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of httpx's clients."""
    timeout = httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
    return {"base_url": url, "headers": headers, "timeout": timeout}


def is_lasting(error: httpx.TransportError) -> bool:
    """Return whether a request that got no answer would get none later: where the other side speaks no TLS, or has a
    certificate that is not trusted. A connection that is cut while TLS begins may be had the next time."""
    cause: BaseException | None = error if isinstance(error, httpx.ConnectError) else None
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadConnection(f"{url!r} is not the address of a service: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadConnection(f"{url!r} is not the address of a service, such as http://127.0.0.1:8000.")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise BadConnection(f"{url!r} is not the address of a service: there is no port {parsed.port}.")
