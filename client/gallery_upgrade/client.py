"""The client that waits for its answers, for scripts and notebooks."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import httpx

from gallery_upgrade.api.operation import Bytes
from gallery_upgrade.api.operations import SyncOperations
from gallery_upgrade.connection import connection_options, http_options, is_lasting
from gallery_upgrade.core.answers import read_answer
from gallery_upgrade.core.calls import Call, StreamCall, written
from gallery_upgrade.core.events import Event, EventReader
from gallery_upgrade.core.exchange import Lost, Pause, Received, Retries, exchange
from gallery_upgrade.galleries import Galleries
from gallery_upgrade.jobs import Job
from gallery_upgrade.upgrades import Upgrade

T = TypeVar("T")


class Client:
    """A service at a URL. `galleries` is where most programs begin; `api` has every operation as it is.

    Without `url` and `key`, GALLERY_URL and GALLERY_API_KEY are read. `timeout_seconds` is how long one answer may
    pause; `retries` says how long, and how often, a request is sent again. A client may be used by several threads.
    Raises `BadConnection`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, headers = connection_options(url, key, os.environ)
        self.retries = Retries() if retries is None else retries
        self._http = httpx.Client(**http_options(self.url, headers, timeout_seconds), transport=transport)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @cached_property
    def api(self) -> SyncOperations:
        """Every operation of the API as one method, each parameter a keyword."""
        return SyncOperations(self)

    @cached_property
    def galleries(self) -> Galleries:
        """The galleries of the service."""
        return Galleries(self)

    def upgrade(self, upgrade_id: int) -> Upgrade:
        """Return an upgrade by its id. Raises `UnknownUpgrade`."""
        return Upgrade(self, self.api.get_upgrade(upgrade_id=upgrade_id))

    def job(self, job_id: int) -> Job:
        """Return a job by its id. Raises `UnknownJob`."""
        return Job(self, self.api.get_job(job_id=job_id))

    def pages(self, read: Callable[..., Any], **parameters: Any) -> Iterator[Any]:
        """Give the entries of every page of a list, such as `pages(client.api.list_items, name="photos")`."""
        cursor = None
        while True:
            page = read(**parameters, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def perform(
        self, call: Call[T], retries: Retries | None = None, sleep: Callable[[float], object] = time.sleep
    ) -> T:
        """Carry a call out, and return its answer; what `sleep` raises between two tries gives it up.

        Raises `Problem`, `ServiceAway` or `NotTheService`.
        """
        with ExitStack() as held:
            received, _ = self._exchanged(call, retries, held, sleep)
        return read_answer(call, received.status, received.headers, received.body)

    @contextmanager
    def stream(self, call: StreamCall[Any]) -> Iterator[Bytes]:
        """Carry a call out, and give its answer's body while it comes."""
        with ExitStack() as held:
            _, response = self._exchanged(call, None, held)
            yield _Body(response)

    @contextmanager
    def events(self, call: StreamCall[Any], retries: Retries | None = None) -> Iterator[Iterator[Event]]:
        """Carry a call out, and give the events of its answer."""
        with ExitStack() as held:
            _, response = self._exchanged(call, retries, held)
            reader = EventReader()
            yield (event for line in response.iter_lines() if (event := reader.take(line)) is not None)

    def _exchanged(
        self,
        call: Call[Any],
        retries: Retries | None,
        held: ExitStack,
        sleep: Callable[[float], object] = time.sleep,
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
                sleep(step.seconds)
                came = None
                continue
            try:
                response = self._sent(call, held)
                came = Received(response.status_code, response.headers, response.content if response.is_closed else b"")
            except httpx.TransportError as error:
                came = Lost(error, is_lasting=is_lasting(error))

    def _sent(self, call: Call[Any], held: ExitStack) -> httpx.Response:
        with ExitStack() as opened:
            request = self._http.build_request(**written(call, opened))
            streamed = isinstance(call, StreamCall)
            response = self._http.send(request, stream=streamed)
        if streamed and response.is_error:
            response.read()
        elif streamed:
            held.callback(response.close)
        return response


class _Body:
    """The body of an answer that comes."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.headers = response.headers

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_bytes()

    def read(self) -> bytes:
        return self._response.read()
