"""Waiting for what the service does: by its stream of events, and by asking now and then where there is none."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx

from gallery_upgrade.core.calls import StreamCall
from gallery_upgrade.core.events import Event
from gallery_upgrade.core.exchange import NO_RETRIES, Retries
from gallery_upgrade.errors import ServiceAway, TooManyRequests, Unavailable

if TYPE_CHECKING:
    from gallery_upgrade.client import Client

# Between two looks while no stream can be had.
_LOOKS = Retries(base_seconds=0.5, most_seconds=5.0)


class Followed(Protocol):
    """What has a state and a progress: an upgrade, a job, a backfill."""

    @property
    def state(self) -> str: ...
    @property
    def progress(self) -> Mapping[str, Any]: ...


T = TypeVar("T")
V = TypeVar("V", bound=Followed)


def follow(
    client: "Client",
    read: Callable[[], V],
    events: Callable[[int | None], StreamCall[Event]],
    settled: Callable[[V], bool],
    *,
    show: Callable[[Mapping[str, Any]], None] | None = None,
    timeout_seconds: float | None = None,
) -> V:
    """Return what `read` gives once that is `settled`. `events` is the call of the stream after the event of an id.

    `show` is told the progress whenever it changed. A stream that breaks, or that cannot be had, is asked for again
    after a pause, and the resource itself is read meanwhile. Raises TimeoutError after `timeout_seconds`, give or take
    the time between two pings of the stream, and `ServiceAway` where nothing answers for as long as the client tries.
    """
    ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    last_event_id: int | None = None
    tries = 0
    while True:
        view = read()
        if show is not None:
            show({name: _fields(phase) for name, phase in view.progress.items()})
        if settled(view):
            return view
        _check(ends, view)
        try:
            with client.events(events(last_event_id), NO_RETRIES) as stream:
                for event in stream:
                    tries = 0
                    last_event_id = last_event_id if event.id is None else event.id
                    if event.kind == "progress" and show is not None:
                        show(event.data)
                    elif event.kind in ("state", "ping"):
                        view = read()
                        if settled(view):
                            return view
                    _check(ends, view)
        except (ServiceAway, TooManyRequests, Unavailable, httpx.TransportError):
            pass  # as after a stream that ended
        time.sleep(_LOOKS.pause(tries, 0.0))
        tries += 1


def look_for(read: Callable[[], T | None], what: str, *, timeout_seconds: float | None = None) -> T:
    """Return what `read` gives, asked now and then until it is something. Raises TimeoutError."""
    ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    tries = 0
    while (found := read()) is None:
        if ends is not None and time.monotonic() > ends:
            raise TimeoutError(f"{what} is not there yet.")
        time.sleep(_LOOKS.pause(tries, 0.0))
        tries += 1
    return found


def _check(ends: float | None, view: Followed) -> None:
    if ends is not None and time.monotonic() > ends:
        raise TimeoutError(f"It is still {view.state}.")


def _fields(phase: Any) -> Any:
    return phase.model_dump() if hasattr(phase, "model_dump") else phase
