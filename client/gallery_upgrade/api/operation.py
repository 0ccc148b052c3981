"""How a builder of requests becomes a method of each of the two clients."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import wraps
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from gallery_upgrade.core.calls import Call, StreamCall
from gallery_upgrade.core.events import Event

P = ParamSpec("P")
T = TypeVar("T")


class Bytes(Protocol):
    """The body of an answer, as it comes."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def read(self) -> bytes: ...


class AsyncBytes(Protocol):
    """The body of an answer, as it comes."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self) -> bytes: ...


class Operations:
    """The operations of a client, which sends their calls."""

    def __init__(self, client: Any) -> None:
        self.client = client


class Operation(Generic[P, T]):
    """A method with the parameters of `build`, whose result is what `send` makes of a client and the call."""

    def __init__(self, build: Callable[P, Call[Any]], send: Callable[[Any, Any], T]) -> None:
        self.build = build
        self._send = send

    def __get__(self, instance: Operations, owner: type) -> Callable[P, T]:
        @wraps(self.build)
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return self._send(instance.client, self.build(*args, **kwargs))

        return method


def answers(build: Callable[P, Call[T]]) -> Operation[P, T]:
    return Operation(build, lambda client, call: client.perform(call))


def streams(build: Callable[P, StreamCall[bytes]]) -> Operation[P, AbstractContextManager[Bytes]]:
    return Operation(build, lambda client, call: client.stream(call))


def tells(build: Callable[P, StreamCall[Event]]) -> Operation[P, AbstractContextManager[Iterator[Event]]]:
    return Operation(build, lambda client, call: client.events(call))


def answers_async(build: Callable[P, Call[T]]) -> Operation[P, Awaitable[T]]:
    return Operation(build, lambda client, call: client.perform(call))


def streams_async(build: Callable[P, StreamCall[bytes]]) -> Operation[P, AbstractAsyncContextManager[AsyncBytes]]:
    return Operation(build, lambda client, call: client.stream(call))


def tells_async(
    build: Callable[P, StreamCall[Event]],
) -> Operation[P, AbstractAsyncContextManager[AsyncIterator[Event]]]:
    return Operation(build, lambda client, call: client.events(call))
