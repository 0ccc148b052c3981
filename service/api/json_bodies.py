"""JSON as it comes in: read off the event loop, and refused where it would be many times as large in memory.

A list or an object without anything in it takes three bytes of JSON and eighty of memory, so their number has a limit
of its own. What is large is read by one thread at a time. An object that has a key twice is refused, since one of its
values would be ignored.
"""

import itertools
import threading
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from jiter import from_json
from pydantic import BaseModel, ConfigDict, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from service.errors import TooLarge, Unprocessable

_MOST_CONTAINERS = 1_000_000
_LARGE_BYTES = 2**16
_one_at_a_time = threading.Lock()


class NotJson(Unprocessable):
    """What is to be JSON is not."""


class TooManyValues(TooLarge):
    """The JSON has more lists and objects than one request may bring."""


class Body(BaseModel):
    """What comes in as JSON: its own fields and no others, each a value of its own type. True is no number and "1" is
    none, 1 is not true; a number without a fraction is an integer however it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: int(value) if _is_whole(value) else value for name, value in values.items()}


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


class JsonRoute(APIRoute):
    """A route whose body of JSON is read by `parse_json`; FastAPI would read it on the event loop."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def read_and_answer(request: Request) -> Response:
            if self.body_field is not None and is_json(request.headers) and await request.body():
                await read_json(request)
            return await answer(request)

        return read_and_answer


async def read_json(request: Request) -> Any:
    """Return the value of the body, which Starlette keeps for `Request.json`. Raises `NotJson` (422) and
    `TooManyValues` (413)."""
    if not hasattr(request, "_json"):
        body = await request.body()
        is_large = len(body) > _LARGE_BYTES
        request._json = await run_in_threadpool(parse_json, body) if is_large else parse_json(body)
        if b"\\u0000" in body:
            _refuse_nul(request._json)
    return request._json


def _refuse_nul(value: Any) -> None:
    """Raise `NotJson` (422) where a text has the one character that PostgreSQL has no place for."""
    if isinstance(value, str) and "\0" in value:
        raise NotJson("The body has a text with a NUL character, which cannot be stored.")
    for each in (
        value if isinstance(value, list) else itertools.chain(*value.items()) if isinstance(value, dict) else ()
    ):
        _refuse_nul(each)


def is_json(headers: Headers) -> bool:
    """Whether a body says that it is JSON."""
    said = headers.get("content-type", "")
    if said == "application/json":
        return True
    message = Message()
    message["content-type"] = said
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def parse_json(text: bytes | str, name: str = "The body") -> Any:
    """Return the value. Raises `NotJson` (422) and `TooManyValues` (413), naming what it is of."""
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > _MOST_CONTAINERS:
        raise TooManyValues(f"{name} has more than {_MOST_CONTAINERS:,} lists and objects: send it in parts.")
    with _one_at_a_time if len(text) > _LARGE_BYTES else nullcontext():
        try:
            return from_json(text.encode() if isinstance(text, str) else text, catch_duplicate_keys=True)
        except ValueError as error:
            raise NotJson(f"{name} is not JSON: {error}.") from error
