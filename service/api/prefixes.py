"""Where the service is reached: the path below which a proxy puts it, said by settings, or by a proxy that is trusted.

Paths that a proxy leaves the prefix on and paths that it takes the prefix from are both served; addresses in answers,
`Location` among them, begin with it.
"""

import ipaddress
import re
from collections.abc import Collection
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATTERN = re.compile(r"(/[A-Za-z0-9._~-]+)+")

_prefix: ContextVar[str] = ContextVar("prefix", default="")


def address(path: str) -> str:
    """Return the path at which the client that is answered reaches one of ours."""
    return _prefix.get() + path


class PrefixMiddleware:
    """Sets the prefix of a request: `root_path`, or what X-Forwarded-Prefix of a proxy says, one of the addresses and
    networks in `proxies`."""

    def __init__(self, app: ASGIApp, root_path: str, proxies: Collection[str]) -> None:
        self._app = app
        self._root_path = root_path
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = self._root_path
        forwarded = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/") if self._is_proxy(scope) else ""
        if _PATTERN.fullmatch(forwarded):
            prefix = forwarded
        path = scope["path"]
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            path = path.removeprefix(prefix) or "/"
        _prefix.set(prefix)

        async def send_with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start" and prefix:
                headers = MutableHeaders(scope=message)
                location = headers.get("location", "")
                if location.startswith("/"):
                    headers["location"] = prefix + location
            await send(message)

        # Within the application a path has no prefix, so that limits and keys of requests know it; `root_path` is what
        # the pages of the API's documentation ask below.
        await self._app({**scope, "path": path, "root_path": prefix}, receive, send_with_prefix)

    def _is_proxy(self, scope: Scope) -> bool:
        if not self._proxies or not scope.get("client"):
            return False
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except ValueError:
            return False
        return any(address in network for network in self._proxies)
