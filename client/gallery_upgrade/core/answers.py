"""How an answer is read: as the model that its status has, as text, as bytes, or as the error that it is."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from gallery_upgrade.core.calls import Call
from gallery_upgrade.errors import NotTheService, Problem, problem_class

T = TypeVar("T")

_NOT_FOUND = 404


def read_answer(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """Return an answer that succeeded. Raises `NotTheService` if it is none of the call's."""
    if status not in call.answers:
        if status == _NOT_FOUND:  # deleted by a try whose answer was lost
            return cast("T", None)
        raise NotTheService(f"{call.method} {call.path} was answered {status}, which is no answer of this service.")
    if call.text and headers.get("content-type", "").startswith("text/"):
        return cast("T", body.decode())
    model = call.answers[status]
    if model is None:
        return cast("T", body or None)
    from gallery_upgrade.api import models

    try:
        return cast("T", getattr(models, model).model_validate_json(body))
    except ValueError as error:
        raise NotTheService(f"{call.method} {call.path} was answered with what is no {model}: {error}") from error


def problem_of(status: int, headers: Mapping[str, str], body: bytes) -> Problem:
    """Return the error that an answer is, of the class of its problem's `type` or else of its status."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    document: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = str(document.get("type", "about:blank"))
    detail = document.get("detail") or f"The service answered {status}: {body[:200].decode(errors='replace')}"
    retry_after = headers.get("retry-after", "")
    return problem_class(kind, status)(
        str(detail),
        status=status,
        type=kind,
        errors=document.get("errors") or [],
        retry_after_seconds=float(retry_after) if retry_after.isdigit() else None,
    )
