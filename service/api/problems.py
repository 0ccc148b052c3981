"""Errors as `application/problem+json` (RFC 9457): how an exception becomes an answer."""

import errno
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

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


def kind_of(error: type[GalleryError]) -> str:
    """Return the `type` of the problems that an error becomes."""
    name = error.__name__
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")
    return f"urn:gallery-upgrade:{words}"


def refused(error: GalleryError) -> JSONResponse:
    """Return the answer to a request that a rule refuses."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return problem(error.status_code, error.message, kind=kind_of(type(error)), errors=error.errors, headers=headers)


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


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_allowed(request))
        return problem(405, f"The path takes {allowed}, not {request.method}.", headers={"Allow": allowed})
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _allowed(request: Request) -> list[str]:
    """Return the methods that the path of a request takes; each is a route of its own."""
    found = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.router.routes
        )
    ]
    return ["HEAD", *found] if "GET" in found else found


def database_away(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request for which the database does not answer."""
    events.warning("request.database_away", path=request.url.path, reason=str(error).splitlines()[0])
    return problem(503, "The database does not answer; try again shortly.", headers={"Retry-After": "1"})


def _index_away(request: Request, error: Exception) -> JSONResponse:
    events.warning("request.index_away", path=request.url.path, reason=str(error).splitlines()[0])
    return problem(503, "The index does not answer; try again shortly.", headers={"Retry-After": "1"})


def _system_refused(request: Request, error: Exception) -> JSONResponse:
    """Answer for what the machine has no more of just now; anything else is unexpected."""
    assert isinstance(error, OSError)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        events.warning("request.no_descriptors", path=request.url.path)
        return problem(503, "The service has too many files open; try again shortly.", headers={"Retry-After": "5"})
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        events.warning("request.disk_full", path=request.url.path)
        return problem(507, "The disk of the service is full; nothing was stored.")
    raise error


def _client_gone(_request: Request, _error: Exception) -> JSONResponse:
    """Answer a client that went away before its request was whole; nobody reads it, and nothing is wrong here."""
    return problem(400, "The request ended before it was whole.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    events.exception("request.failed", error, path=request.url.path)
    # This answer does not pass through the middleware that gives the others their id; and the server ends the
    # connection after an error that nobody expected.
    headers = {"X-Request-ID": logs.request_id.get(), "Connection": "close"}
    return problem(500, "The service failed on this request; its log has the reason.", headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(GalleryError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for away in AWAY:
        app.add_exception_handler(away, database_away)
    app.add_exception_handler(IndexAway, _index_away)
    app.add_exception_handler(OSError, _system_refused)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
