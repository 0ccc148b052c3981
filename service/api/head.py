"""HEAD of everything that GET answers: the same status and headers, without a body."""

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Has a HEAD request answered as a GET, of which no body is sent; what would be streamed ends after its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        with anyio.CancelScope() as answering:

            async def send_no_body(message: Message) -> None:
                if message["type"] == "http.response.body":
                    if message.get("more_body", False):
                        answering.cancel()
                    return
                await send(message)

            await self._app({**scope, "method": "GET"}, receive, send_no_body)
        await send({"type": "http.response.body", "body": b""})
