"""What the OpenAPI document says of refusals: each is a problem document (RFC 9457), whose `type` says which it is.

An endpoint names beside it what it may refuse for, `responses=refusals(UnknownGallery, GalleryBusy)`. What any request
may be refused for is listed here, by its method and by its body's media type, and `add_refusals` writes it into every
operation.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.access.known_keys import UnknownKey, UnknownSession
from service.access.operations import MissingScope
from service.access.quotas import QuotaExceeded
from service.access.tenancy import NotYourGallery
from service.api.access import FormBySession, KeyInAddress, NoKey
from service.api.json_bodies import NotJson, TooManyValues
from service.api.parameters import UnknownParameter
from service.api.problems import MEDIA_TYPE, kind_of
from service.api.spooled_form import TooMuchText
from service.api.uploads import InvalidForm, MissingPart, TooManyFiles
from service.blobs import BlobDamaged, BlobMissing
from service.disk import NoRoom
from service.domain.request_keys import KeyOfAnotherRequest, RequestStillRuns
from service.errors import GalleryError, Unavailable
from service.vectors.arrow import BadRows, InvalidImport, UnknownFormat
from service.vectors.bounded_tables import TableTooLarge

# By status, the types of problems, each with a sentence.
Types = dict[int, dict[str, str]]

_STATED = "x-refusals"  # where `refusals` leaves them for `add_refusals`, in a response that FastAPI copies
# A name in an address may be one that no address has, with a line break for one.
_NOWHERE: Types = {HTTPStatus.NOT_FOUND: {"about:blank": "Nothing has this address."}}
_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "in seconds"}}


class Problem(BaseModel):
    """Why a request was refused: `detail` is a sentence, and `errors` are details where they help."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


def refusals(*errors: type[GalleryError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an endpoint that may refuse for these errors."""
    return {status: {_STATED: stated} for status, stated in _types_of(*errors).items()}


def add_refusals(app: FastAPI) -> None:
    """Have the application's document say of every operation what it may be refused for."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        components = document["components"]
        if Problem.__name__ not in components["schemas"]:
            components["schemas"][Problem.__name__] = Problem.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):  # what FastAPI would answer
                components["schemas"].pop(name, None)
            shared = components.setdefault("responses", {})
            for operations in document["paths"].values():
                for method, operation in operations.items():
                    _add_to(operation, _OF_METHOD.get(method, _OF_CHANGES), shared)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend its document


def _add_to(operation: dict[str, Any], general: Types, shared: dict[str, Any]) -> None:
    """Write into an operation its own refusals and the general ones: where it has none of its own of a status, by
    reference to what operations share."""
    responses = operation["responses"]
    own = {int(status): response[_STATED] for status, response in responses.items() if _STATED in response}
    for media_type in operation.get("requestBody", {}).get("content", {}):
        own = _both(own, _OF_BODIES.get(media_type, {}))
    if HTTPStatus.NOT_FOUND in own:
        own = _both(own, _NOWHERE)
    for status, types in _both(general, own).items():
        response = _response(status, types)
        if status not in own:
            name = f"Refused{status}{'OfPost' if general is _OF_POSTS and status in _KEYED else ''}"
            shared[name] = response
            response = {"$ref": f"#/components/responses/{name}"}
        responses[str(status)] = response
    operation["responses"] = dict(sorted(responses.items()))


def _response(status: int, types: dict[str, str]) -> dict[str, Any]:
    schema = {
        "allOf": [{"$ref": f"#/components/schemas/{Problem.__name__}"}],
        "properties": {"type": {"enum": sorted(types)}},
    }
    headers = {"headers": _RETRY_AFTER} if status in _LATER else {}
    return {"description": " ".join(types.values()), "content": {MEDIA_TYPE: {"schema": schema}}, **headers}


def _types_of(*errors: type[GalleryError]) -> Types:
    """Return the types of errors, each with what its class says of itself first."""
    found: Types = {}
    for error in errors:
        sentence = " ".join((error.__doc__ or "").split()).partition(". ")[0].removesuffix(".")
        found.setdefault(error.status_code, {})[kind_of(error)] = f"{sentence}."
    return found


def _plain(sentences: dict[int, str]) -> Types:
    """Return the types of problems of which their status says all."""
    return {status: {"about:blank": sentence} for status, sentence in sentences.items()}


def _both(one: Types, other: Types) -> Types:
    return {status: one.get(status, {}) | other.get(status, {}) for status in sorted(one.keys() | other.keys())}


_OF_ALL = _both(
    _plain(
        {
            400: "The request is not valid HTTP, or its body is not what its headers say.",
            408: "The request did not get on.",
            413: "The body is too large.",
            414: "The address is too long.",
            415: "The body's encoding is not one that is read.",
            421: "The Host header names another service.",
            422: "The request is not as it is described here.",
            431: "The headers are too large.",
            500: "The service failed.",
            503: "Something that is needed does not answer just now.",
        }
    ),
    _types_of(
        UnknownParameter,
        BlobDamaged,
        BlobMissing,
        Unavailable,
        # Of who asks.
        NoKey,
        KeyInAddress,
        UnknownKey,
        UnknownSession,
        MissingScope,
        NotYourGallery,
        QuotaExceeded,
    ),
)
_OF_CHANGES = _both(
    _both(_OF_ALL, _plain({403: "A page of another origin asks for it.", 507: "The disk is full."})),
    _types_of(NoRoom, FormBySession),
)
_KEYED = _types_of(RequestStillRuns, KeyOfAnotherRequest)
_OF_POSTS = _both(_OF_CHANGES, _KEYED)
_OF_METHOD = {"get": _OF_ALL, "post": _OF_POSTS}
_OF_JSON = _types_of(NotJson, TooManyValues)
_OF_BODIES = {
    "application/json": _OF_JSON,
    "multipart/form-data": _both(_OF_JSON, _types_of(InvalidForm, MissingPart, TooManyFiles, TooMuchText)),
    "application/vnd.apache.parquet": _types_of(UnknownFormat, InvalidImport, BadRows, TableTooLarge),
}
