"""The client for programs that use asyncio."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from gallery_upgrade.api.operation import AsyncBytes
from gallery_upgrade.api.operations import AsyncOperations
from gallery_upgrade.connection import connection_options, http_options, is_lasting
from gallery_upgrade.core.answers import read_answer
from gallery_upgrade.core.calls import Call, StreamCall, written
from gallery_upgrade.core.events import Event, EventReader
from gallery_upgrade.core.exchange import Lost, Pause, Received, Retries, exchange
from gallery_upgrade.images import Image, query_of
from gallery_upgrade.searching import FIRST_PAGE, found_by, search_call

if TYPE_CHECKING:
    from gallery_upgrade.api import models

T = TypeVar("T")


class AsyncClient:
    """As `Client`, with `api` to be awaited: `await client.api.get_gallery(name="photos")`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, headers = connection_options(url, key, os.environ)
        self.retries = Retries() if retries is None else retries
        self._http = httpx.AsyncClient(**http_options(self.url, headers, timeout_seconds), transport=transport)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @cached_property
    def api(self) -> AsyncOperations:
        """Every operation of the API as one method, each parameter a keyword."""
        return AsyncOperations(self)

    async def pages(self, read: Callable[..., Any], **parameters: Any) -> AsyncIterator[Any]:
        """Give the entries of every page of a list, such as `pages(client.api.list_items, name="photos")`."""
        cursor = None
        while True:
            page = await read(**parameters, cursor=cursor)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def search_pages(
        self, gallery: str, query: Image, *, k: int = 100, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> "AsyncIterator[list[models.NeighborView]]":
        """Give the neighbours of a query page by page, k on each, as `Gallery.search_pages` does; `options` are its
        others. Raises what it raises."""
        asked = query_of(query)
        cursor: str | None = FIRST_PAGE
        while cursor is not None:
            answer = await self.perform(search_call(gallery, asked, k=k, filter=filter, cursor=cursor, **options))
            yield found_by(asked, answer)[0]
            cursor = answer.next_cursor

    async def perform(self, call: Call[T], retries: Retries | None = None) -> T:
        """Carry a call out, and return its answer. Raises `Problem`, `ServiceAway` or `NotTheService`."""
        async with AsyncExitStack() as held:
            received, _ = await self._exchanged(call, retries, held)
        return read_answer(call, received.status, received.headers, received.body)

    @asynccontextmanager
    async def stream(self, call: StreamCall[Any]) -> AsyncIterator[AsyncBytes]:
        """Carry a call out, and give its answer's body while it comes."""
        async with AsyncExitStack() as held:
            _, response = await self._exchanged(call, None, held)
            yield _Body(response)

    @asynccontextmanager
    async def events(
        self, call: StreamCall[Any], retries: Retries | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Carry a call out, and give the events of its answer."""
        async with AsyncExitStack() as held:
            _, response = await self._exchanged(call, retries, held)
            reader = EventReader()
            yield (event async for line in response.aiter_lines() if (event := reader.take(line)) is not None)

    async def _exchanged(
        self, call: Call[Any], retries: Retries | None, held: AsyncExitStack
    ) -> tuple[Received, httpx.Response]:
        """Do what the exchange says. A streamed answer that succeeded is left open, and closed by `held`."""
        steps = exchange(call, self.retries if retries is None else retries)
        came: Received | Lost | None = None
        response: httpx.Response | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as done:
                assert response is not None
                return done.value, response
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                came = None
                continue
            try:
                response = await self._sent(call, held)
                came = Received(response.status_code, response.headers, response.content if response.is_closed else b"")
            except httpx.TransportError as error:
                came = Lost(error, is_lasting=is_lasting(error))

    async def _sent(self, call: Call[Any], held: AsyncExitStack) -> httpx.Response:
        with ExitStack() as opened:
            request = self._http.build_request(**written(call, opened))
            streamed = isinstance(call, StreamCall)
            response = await self._http.send(request, stream=streamed)
        if streamed and response.is_error:
            await response.aread()
        elif streamed:
            held.push_async_callback(response.aclose)
        return response


class _Body:
    """The body of an answer that comes."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.headers = response.headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_bytes()

    async def read(self) -> bytes:
        return await self._response.aread()
