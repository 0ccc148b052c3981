"""How a page of the console is made: its template, what every template may use, and how an error is shown."""

import json
import shlex
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service import identity
from service.access.operations import operation_of
from service.api.console.assets import asset
from service.api.items import thumbnail_url
from service.api.prefixes import address
from service.errors import GalleryError

NOTHING = "–"
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


class PageRoute(APIRoute):
    """A route whose refusals are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_show(request: Request) -> Response:
            try:
                return await handle(request)
            except GalleryError as error:
                return _problem_page(request, error.status_code, error.message)
            except RequestValidationError as error:
                sentence = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
                return _problem_page(request, 422, f"The address is not valid: {sentence}")

        return handle_or_show


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page, or the part of one that a module asked for."""
    origin = str(request.base_url).rstrip("/")
    text = _ENVIRONMENT.get_template(template).render(origin=origin, **values)
    return HTMLResponse(text, status, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})


def console_address(path: str, **parameters: Any) -> str:
    """Return the address of a page below `/console`; parameters that are None or empty are left out."""
    query = urlencode({name: value for name, value in parameters.items() if value not in (None, "")})
    return address(f"/console{quote(path)}{'?' + query if query else ''}")


def _problem_page(request: Request, status: int, sentence: str) -> HTMLResponse:
    return render(
        request, "pages/problem.html", status, number=status, phrase=HTTPStatus(status).phrase, sentence=sentence
    )


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}".replace("-", "−")


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %".replace("-", "−")


def size(count_of_bytes: float | None) -> str:
    """Return bytes in the largest unit of which there is one."""
    if count_of_bytes is None:
        return NOTHING
    value = float(count_of_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(seconds: float | None) -> str:
    """Return seconds in words, of at most two units."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{1_000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, name, smaller, smaller_name in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} {seconds % unit // smaller:.0f} {smaller_name}"
    if seconds >= _MINUTE:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    return f"{seconds:.0f} s"


def when(at: datetime | None) -> Markup | str:
    """Return a time with its zone."""
    if at is None:
        return NOTHING
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), at.strftime("%Y-%m-%d %H:%M:%S %Z"))


def words(name: str) -> str:
    return str(name).replace("_", " ")


def isolated(text: str) -> Markup:
    """Return text of a user's, from which no direction of writing leaks into what follows."""
    return Markup("<bdi>{}</bdi>").format(text)


def curl(origin: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
    """Return the command that asks for the same from a shell."""
    parts = ["curl", "-sS"]
    if method != "GET":
        parts += ["-X", method]
    if body is not None:
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(body, ensure_ascii=False)]
    return shlex.join([*parts, origin + path])


def missing_scope(method: str, path: str) -> str | None:
    """Return the scope that whoever looks at the page lacks for a call of the API; None where it may make it."""
    operation = operation_of(method, path.removeprefix(address("")).partition("?")[0])
    scope = None if operation is None else operation.scope
    return None if scope is None or identity.current.get().may(scope) else scope


def _make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[2] / "console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "count": count,
        "number": number,
        "percent": percent,
        "size": size,
        "duration": duration,
        "when": when,
        "words": words,
        "isolated": isolated,
        "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    }
    environment.globals |= {
        "address": address,
        "asset": asset,
        "console": console_address,
        "curl": curl,
        "thumbnail_url": thumbnail_url,
        "missing_scope": missing_scope,
        "who": identity.current.get,
    }
    return environment


_ENVIRONMENT = _make_environment()
