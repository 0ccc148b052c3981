"""Runs of networks that nobody wants to end any more: whoever has networks run says so, and long runs look for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_unwanted: ContextVar[Callable[[], bool] | None] = ContextVar("is_unwanted", default=None)


class RunAbandoned(BaseException):
    """What was computed is not wanted any more: no fault of the network's, so what makes sentences of its exceptions
    lets it pass."""


@contextmanager
def abandoned_when(is_unwanted: Callable[[], bool]) -> Iterator[None]:
    """Have runs of networks in the context, in this thread, raise `RunAbandoned` soon after `is_unwanted` says so. It
    is asked often."""
    token = _is_unwanted.set(is_unwanted)
    try:
        yield
    finally:
        _is_unwanted.reset(token)


def check_wanted() -> None:
    """Raise `RunAbandoned` if what is computed here is not wanted any more."""
    is_unwanted = _is_unwanted.get()
    if is_unwanted is not None and is_unwanted():
        raise RunAbandoned
