"""Errors as `application/problem+json` (RFC 9457): how an exception becomes an answer."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import logs
from service.db import AWAY
from service.errors import GalleryError
from service.index.protocol import IndexAway

events = logs.Events(__name__)
MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    kind: str = "about:blank",
    errors: list[dict[str, object]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document; `kind` becomes its `type`."""
    body: dict[str, object] = {
        "type": kind,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = errors
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _kind(error: Exception) -> str:
    name = type(error).__name__
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")
    return f"urn:gallery-upgrade:{words}"


def refused(error: GalleryError) -> JSONResponse:
    """Return the answer to a request that a rule refuses."""
    headers = None if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    return problem(error.status_code, error.message, kind=_kind(error), errors=error.errors, headers=headers)


def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GalleryError)
    return refused(error)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"location": list(e["loc"]), "detail": e["msg"]}
        for e in jsonable_encoder(error.errors(), custom_encoder={bytes: lambda value: f"{len(value)} bytes"})
    ]
    where = "; ".join(f"{'.'.join(map(str, e['location']))}: {e['detail']}" for e in errors[:3])
    return problem(422, f"The request is not valid: {where}", errors=errors)


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def database_away(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request for which the database does not answer."""
    events.warning("request.database_away", path=request.url.path, reason=str(error).splitlines()[0])
    return problem(503, "The database does not answer; try again shortly.", headers={"Retry-After": "1"})


def _index_away(request: Request, error: Exception) -> JSONResponse:
    events.warning("request.index_away", path=request.url.path, reason=str(error).splitlines()[0])
    return problem(503, "The index does not answer; try again shortly.", headers={"Retry-After": "1"})


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    events.exception("request.failed", error, path=request.url.path)
    # This answer does not pass through the middleware that gives the others their id.
    headers = {"X-Request-ID": logs.request_id.get()}
    return problem(500, "The service failed on this request; its log has the reason.", headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(GalleryError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for away in AWAY:
        app.add_exception_handler(away, database_away)
    app.add_exception_handler(IndexAway, _index_away)
    app.add_exception_handler(Exception, _unexpected)
