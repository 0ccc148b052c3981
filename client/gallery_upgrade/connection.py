"""Where a client is connected to, and how."""

from collections.abc import Mapping
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 10.0


def connection_options(url: str | None, key: str | None, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the URL of the service and the headers of every request: as given, or as the environment says."""
    key = environment.get("GALLERY_API_KEY") if key is None else key
    headers = {"User-Agent": "gallery-upgrade-client"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return (url or environment.get("GALLERY_URL") or DEFAULT_URL).rstrip("/"), headers


def http_options(url: str, headers: dict[str, str], timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of httpx's clients."""
    timeout = httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
    return {"base_url": url, "headers": headers, "timeout": timeout}
