"""Query parameters that nobody reads: a misspelt `limt` is refused, not ignored."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from service.db import is_storable
from service.errors import Unprocessable


class UnknownParameter(Unprocessable):
    """The query has a parameter that the call does not have, one of its own twice, or text that is nowhere stored."""


def refuse_unknown_parameters(request: Request) -> None:
    """Raise `UnknownParameter` (422) unless the call has each parameter of the query, all but lists only once, and each
    is text that PostgreSQL takes."""
    route = request.scope.get("route")
    if not request.scope["query_string"] or not isinstance(route, APIRoute):
        return
    known = dict(_parameters(route))
    given = [name for name, _ in request.query_params.multi_items()]
    for name, value in request.query_params.multi_items():
        if name in known and not is_storable(value):
            raise UnknownParameter(f"The parameter {name!r} has a NUL or is not valid Unicode.")
    for name in given:
        if name not in known:
            raise UnknownParameter(_sentence(name, known))
        if given.count(name) > 1 and not known[name]:
            raise UnknownParameter(f"The parameter {name!r} is given {given.count(name)} times.")


def _sentence(name: str, known: dict[str, bool]) -> str:
    shown = name if len(name) <= 100 else f"{name[:100]}…"
    if not known:
        return f"There is no parameter {shown!r}: this call has none."
    meant = difflib.get_close_matches(shown, known, 1)
    hint = f"; did you mean {meant[0]!r}?" if meant else f". Parameters are {', '.join(sorted(known))}."
    return f"There is no parameter {shown!r}{hint}"


def _parameters(route: APIRoute) -> Iterator[tuple[str, bool]]:
    """Give the names of a call's query parameters, and whether they are lists."""
    for parameter in get_flat_params(route.dependant):
        if isinstance(parameter.field_info, Query):
            yield parameter.alias, _is_list(parameter.field_info.annotation)
    described: list[dict[str, Any]] = (route.openapi_extra or {}).get("parameters", [])
    for extra in described:
        if extra["in"] == "query":
            yield extra["name"], extra["schema"].get("type") == "array"


def _is_list(annotation: Any) -> bool:
    """Whether a parameter is a list, or may be one."""
    return any(get_origin(each) is list for each in (annotation, *get_args(annotation)))
