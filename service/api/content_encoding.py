"""Bodies that come compressed: gzip and Zstandard are decoded as they are read, within the limits of every body.

A few bytes may stand for gigabytes, so a part is decoded only when the one before it was taken, and no part is large:
`service.api.limits` counts what comes out, and ends a request that grows beyond its limit.
"""

import zlib
from collections.abc import Iterator
from typing import Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem

_PART_BYTES = 1 * 2**20
_ACCEPTED = "gzip, zstd"
# What RFC 9659 lets a sender use: 8 MiB, which is what decoding holds in memory.
_ZSTD_OPTIONS: dict[int, int] = {DecompressionParameter.window_log_max: 23}


class _Decoder(Protocol):
    """Decodes one body: `feed` gives what some of its bytes stand for, in parts, and `is_whole` says whether the body
    may end here."""

    is_whole: bool

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    """One gzip member after another."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.is_whole = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            part = self._member.decompress(data, _PART_BYTES)
            data = self._member.unconsumed_tail or self._member.unused_data
            self.is_whole = self._member.eof
            yield part


class _Zstandard:
    """One frame after another."""

    def __init__(self) -> None:
        self._frame = ZstdDecompressor(options=_ZSTD_OPTIONS)
        self.is_whole = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame.eof:
                self._frame = ZstdDecompressor(options=_ZSTD_OPTIONS)
            part = self._frame.decompress(data, _PART_BYTES)
            yield part
            while not self._frame.eof and not self._frame.needs_input:
                yield self._frame.decompress(b"", _PART_BYTES)
            data = self._frame.unused_data if self._frame.eof else b""
            self.is_whole = self._frame.eof


_DECODERS: dict[str, type[_Gzip] | type[_Zstandard]] = {"gzip": _Gzip, "x-gzip": _Gzip, "zstd": _Zstandard}


class ContentEncodingMiddleware:
    """Decodes a request's body by its Content-Encoding. Answers 415 to one that is not known, and 400 to a body that is
    not what it says; 413 where more than `max_bytes` come in, whatever they stand for."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = Headers(scope=scope).get("content-encoding", "").strip().lower() if scope["type"] == "http" else ""
        if named in ("", "identity"):
            await self._app(scope, receive, send)
        elif named not in _DECODERS:
            detail = f"The body's Content-Encoding {named!r} is not read; send it as it is, or as {_ACCEPTED}, once."
            await problem(415, detail, headers={"Accept-Encoding": _ACCEPTED})(scope, receive, send)
        else:
            about_bytes = (b"content-encoding", b"content-length")
            headers = [(name, value) for name, value in scope["headers"] if name not in about_bytes]
            body = _Decoded(_DECODERS[named](), named, receive, self._max_bytes)
            await body.answer(self._app, {**scope, "headers": headers}, send)


class _Decoded:
    """One request's body; `refusal` is set when it cannot be decoded."""

    def __init__(self, decoder: _Decoder, name: str, receive: Receive, max_bytes: int) -> None:
        self._decoder = decoder
        self._name = name
        self._receive = receive
        self._max_bytes = max_bytes
        self._received = 0
        self._parts: Iterator[bytes] = iter(())
        self._more = True  # to be received
        self._ended = False
        self._refusal: tuple[int, str] | None = None

    async def answer(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        """Let `app` answer; where the body turns out not to be what it says, the answer is a refusal."""
        started = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if started or self._refusal is None:
                started = True
                await send(message)

        # What the application makes of the exception differs, as in `service.api.limits`.
        try:
            await app(scope, self._next, send_unless_refused)
        except HTTPException:
            if self._refusal is None:
                raise
        if self._refusal is not None and not started:
            await problem(*self._refusal)(scope, self._receive, send)

    async def _next(self) -> Message:
        """Give the next part of the body, and after its end what else the client does."""
        if self._ended:
            return await self._receive()
        while (part := await self._decode()) is None:
            if not self._more:
                if not self._decoder.is_whole:
                    raise self._refused(400, f"The body is {self._name} that was cut off.")
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._more = message.get("more_body", False)
            data = message.get("body", b"")
            self._received += len(data)
            if self._received > self._max_bytes:
                raise self._refused(413, f"A request's body has at most {self._max_bytes} bytes.")
            self._parts = self._decoder.feed(data)
        return {"type": "http.request", "body": part, "more_body": True}

    async def _decode(self) -> bytes | None:
        """Return the next part of what was received, None where there is no more."""
        try:
            return await run_in_threadpool(next, self._parts, None)
        except (zlib.error, ZstdError) as error:
            raise self._refused(400, f"The body is not {self._name}: {error}.") from error

    def _refused(self, status: int, detail: str) -> HTTPException:
        self._refusal = (status, detail)
        return HTTPException(status, detail)
