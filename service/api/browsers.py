"""What a page in somebody's browser may do here: nothing, unless it is one of ours or of an origin that was allowed.

A browser sends requests for any page that is open in it, to this machine too. So a request is refused whose Host is a
name that is not ours (a name of somebody else's may lead here: DNS rebinding), and one that changes something for a
page of another origin. Programs that are no browsers send no Origin, and are not held up.
"""

import base64
import hashlib
import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# As ASGI has headers; an answer that brings one of its own keeps it.
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]@/\\\s]+)(:\d{1,5})?")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def content_policy(page: str, scripts_from_here: bool = False) -> str:
    """Return the Content-Security-Policy of a page that is ours, without what users put into it: nothing of other
    origins, and of inline scripts and styles those that are in it."""
    digests: dict[str, list[str]] = {"script": [], "style": []}
    for tag, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        digests[tag].append(f"'sha256-{digest}'")
    here = ["'self'"] if scripts_from_here else []
    parts = {
        "default-src": ["'none'"],
        "script-src": here + digests["script"] or ["'none'"],
        "style-src": here + digests["style"] or ["'none'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in parts.items())


class BrowserMiddleware:
    """Refuses what a foreign page asks for, and tells browsers to keep answers in their place.

    `hosts`: names by which the service is reached, besides localhost and addresses in digits; "*" is any. `origins`:
    those whose pages may do what our own may; "*" is any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts} | {"localhost"}
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message["headers"]
                own = {name for name, _ in given}
                message["headers"] = [*given, *(each for each in _HEADERS.items() if each[0] not in own)]
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            refusal = problem(
                421,
                "The service is not known under the name in the Host header: GALLERY_ALLOWED_HOSTS lists the names by"
                " which it is reached.",
            )
            await refusal(scope, receive, send_with_headers)
        elif scope["method"] not in _SAFE_METHODS and not self._may_change(headers, host):
            refusal = problem(
                403,
                "A page of another origin asks for a change: GALLERY_CORS_ORIGINS lists the origins whose pages may.",
            )
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].lower().removesuffix(".")
        return "*" in self._hosts or name in self._hosts or _is_address(name)

    def _may_change(self, headers: Headers, host: str) -> bool:
        """Whether a request that changes something comes from no page, from one of ours, or from an allowed one."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        origin = origin.lower()
        return "*" in self._origins or origin in self._origins or origin.partition("://")[2] == host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
