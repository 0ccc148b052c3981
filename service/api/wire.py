"""HTTP/1.1 as it comes over a connection, before any request is known: limits of headers, of time and of connections.

uvicorn's own protocol, which parses and answers, takes headers of any size and waits for the rest of a request for
ever. After a refusal here the connection is closed; what is still being sent is read for a moment and thrown away, or
the answer would be lost with it.
"""

import asyncio
import json
import resource
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.problems import MEDIA_TYPE

_MOST_HEADERS = 200
_MOST_HEADER_BYTES = 64 * 2**10
_MOST_ADDRESS_BYTES = 16 * 2**10
_LEAST_BYTES_A_SECOND = 256
_RETRY_SECONDS = 5
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class WireLimits:
    """connections: at once. header_seconds: until the headers of a request are there. body_seconds: in which a body
    that is waited for must get on, by 256 bytes a second."""

    connections: int
    header_seconds: float
    body_seconds: float


class _Refused(Exception):
    """What comes is refused, with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def connections_within_descriptors(wanted: int) -> int:
    """Let this process have as many descriptors as it may, and return how many connections that leaves room for: half
    of them, for files, the database and the broker need some too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else max(1, min(wanted, hard // 2))


def limited_protocol(limits: WireLimits) -> type[HttpToolsProtocol]:
    """Return the protocol that uvicorn is to speak."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(HttpToolsProtocol):
    limits: WireLimits
    _in_headers = True
    _header_bytes = 0
    _body_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(
                _Refused(503, f"{self.limits.connections} connections are open, as many as may be; try again shortly.")
            )
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._in_headers:
            if self._timer is None:  # the first bytes after an answer
                self._expect_headers()
            self._header_bytes += len(data)
        else:
            self._body_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(_Refused(400, "The connection cannot be upgraded to another protocol."))
            return
        except httptools.HttpParserError as error:
            refusal = error.__context__
            self._refuse(
                refusal if isinstance(refusal, _Refused) else _Refused(400, "What came is no valid HTTP request.")
            )
            return
        if self._in_headers and self._header_bytes > _MOST_HEADER_BYTES + _MOST_ADDRESS_BYTES:
            self._refuse(_too_many_headers())

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._check_headers()
        self._in_headers, self._header_bytes = False, 0
        self._expect_body()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_headers = True
        self._stop_waiting()
        super().on_message_complete()

    def _check_headers(self) -> None:
        if len(self.url) > _MOST_ADDRESS_BYTES:
            raise _Refused(414, f"An address has at most {_MOST_ADDRESS_BYTES} bytes.")
        size = sum(len(name) + len(value) for name, value in self.headers)
        if size > _MOST_HEADER_BYTES or len(self.headers) > _MOST_HEADERS:
            raise _too_many_headers()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _Refused(400, "A request has one Host header.")

    def _expect_headers(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.limits.header_seconds, self._headers_late)

    def _headers_late(self) -> None:
        self._refuse(_Refused(408, f"The headers did not come within {self.limits.header_seconds:g} s."))

    def _expect_body(self) -> None:
        self._stop_waiting()
        self._body_bytes = 0
        self._timer = self.loop.call_later(self.limits.body_seconds, self._look_at_body)

    def _look_at_body(self) -> None:
        """Go on waiting while the body gets on, or while it is the service that does not read it."""
        if self.flow.read_paused or self._body_bytes >= _LEAST_BYTES_A_SECOND * self.limits.body_seconds:
            self._expect_body()
        else:
            self._refuse(
                _Refused(408, f"The body did not get on for {self.limits.body_seconds:g} s. Send the request again.")
            )

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: _Refused) -> None:
        """Answer with a problem document, unless an answer is under way, and close the connection."""
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        under_way = self.cycle is not None and not self.cycle.response_complete
        if not (under_way and self.cycle.response_started):
            self.transport.write(_answer(refusal))
        if under_way:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _too_many_headers() -> _Refused:
    return _Refused(431, f"A request has at most {_MOST_HEADERS} headers, of {_MOST_HEADER_BYTES} bytes in all.")


def _answer(refusal: _Refused) -> bytes:
    phrase = HTTPStatus(refusal.status).phrase
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": phrase,
        "status": refusal.status,
        "detail": refusal.sentence,
    }
    body = json.dumps(document).encode()
    lines = [
        f"HTTP/1.1 {refusal.status} {phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
        *([f"retry-after: {_RETRY_SECONDS}"] if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
