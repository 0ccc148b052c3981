"""In which form an answer is wanted: a report for a program or for a person, a list as JSON or as an Arrow table."""

import re
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Query, Request


class Representation(StrEnum):
    JSON = "json"
    HTML = "html"


_WEIGHT = re.compile(r"q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def preferred(accept: str) -> Representation:
    """Return HTML where an Accept header (RFC 9110, section 12.5.1) prefers it, else JSON: also to one that says
    nothing, wants both alike, or neither."""
    return Representation.HTML if prefers(accept, "text/html") else Representation.JSON


def prefers(accept: str, media_type: str) -> bool:
    """Return whether an Accept header prefers the type to JSON."""
    return _quality(accept, media_type) > _quality(accept, "application/json")


def _quality(accept: str, media_type: str) -> float:
    """Return the weight that the most specific range gives a type, 0 if none does."""
    specificity = {"*/*": 0, f"{media_type.partition('/')[0]}/*": 1, media_type: 2}
    most_specific, quality = -1, 0.0
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = specificity.get(name.lower(), -1)
        if found > most_specific:
            most_specific, quality = found, _weight(parameters)
    return quality


def _weight(parameters: list[str]) -> float:
    """Return the weight among a range's parameters: 1 without one, 0 for one that is none."""
    given = [parameter for parameter in parameters if parameter.partition("=")[0].strip().lower() == "q"]
    if not given:
        return 1.0
    match = _WEIGHT.fullmatch(given[0])
    return float(match[1]) if match else 0.0


async def _wanted(
    request: Request,
    format_: Annotated[
        Representation | None, Query(alias="format", description="takes the place of the Accept header")
    ] = None,
) -> Representation:
    """Not `def`, which would wait for a thread."""
    return format_ or preferred(",".join(request.headers.getlist("accept")))


RepresentationDependency = Annotated[Representation, Depends(_wanted)]
