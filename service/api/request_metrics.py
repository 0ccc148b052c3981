"""Counting requests by the route that took them, never by their path, of which there are as many as there are items."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import NO_HANDLER, REQUEST_SECONDS, REQUESTS

_HANDLER = "gallery.handler"
_VERSIONED = "/v1"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMetricsMiddleware:
    """Counts every request and how long its answer took; the outermost one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        handler = scope[_HANDLER] = [NO_HANDLER]  # a list: middlewares hand on copies of the scope
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status, began = 500, time.perf_counter()  # one that raises is answered so, outside of all middlewares

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            REQUESTS.labels(handler[0], method, str(status)).inc()
            REQUEST_SECONDS.labels(handler[0], method).observe(time.perf_counter() - began)


class HandlerMiddleware:
    """Tells the outermost middleware the template of the route that took the request; the innermost one, since the
    route is written into the scope that the router was given."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            route = scope.get("route")
            if route is not None and _HANDLER in scope:
                # A route of an included router does not know the prefix that it was included with.
                prefix = _VERSIONED if scope["path"].startswith(f"{_VERSIONED}/") else ""
                scope[_HANDLER][0] = f"{prefix}{route.path}"
