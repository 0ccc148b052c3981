"""`POST /v1/galleries/{g}/search`: by an image, or by vectors."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from service.api.dependencies import NAME_PATTERN, NamePath, PartsDependency
from service.api.uploads import read_upload_form
from service.domain.queries import MAX_K, Answer, Query, search_image, search_vectors
from service.errors import Unprocessable

router = APIRouter(prefix="/galleries", tags=["search"])

K = Annotated[int, Field(ge=1, le=MAX_K)]
Which = Literal["active", "next"]
_MAX_VECTORS = 1000


class InvalidSearch(Unprocessable):
    """The search request is not one image with its options."""


class NeighborView(BaseModel):
    id: str
    distance: float
    origin: str
    label: str | None
    metadata: dict[str, Any]


class ImageAnswer(BaseModel):
    """Neighbours of the image, nearest first, and the one generation that they all come from."""

    model_version: str
    generation: int
    revision: int
    neighbors: list[NeighborView]


class VectorsAnswer(BaseModel):
    """The same, with one list of neighbours per query vector."""

    model_version: str
    generation: int
    revision: int
    neighbors: list[list[NeighborView]]


class VectorsQuery(BaseModel):
    """With `model_version`, 409 unless the generation that answers is under it."""

    model_config = ConfigDict(extra="forbid")

    vectors: Annotated[
        list[list[Annotated[float, Field(allow_inf_nan=False)]]], Field(min_length=1, max_length=_MAX_VECTORS)
    ]
    k: K = 10
    filter: dict[str, Any] | None = None
    model_version: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None


@dataclass(frozen=True)
class ImageQuery:
    """The image's bytes and its options, from a form or from a raw body with query parameters."""

    data: bytes
    k: int
    condition: dict[str, Any] | None


_K = TypeAdapter(K)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
                        "filter": {"type": "string", "description": "JSON condition"},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "k",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
            "description": "with a raw image body",
        },
        {"name": "filter", "in": "query", "required": False, "schema": {"type": "string"}},
    ],
}


async def _image_query(request: Request) -> AsyncIterator[ImageQuery]:
    max_bytes: int = request.app.state.parts.settings.max_image_bytes
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async for form in read_upload_form(request):
            file = form.get("file")
            if not isinstance(file, UploadFile) or set(form) - {"file", "k", "filter"}:
                raise InvalidSearch("The form has one file named 'file', and optionally 'k' and 'filter'.")
            data = await file.read(max_bytes + 1)
            yield ImageQuery(data, _k(form.get("k")), _condition(form.get("filter")))
    else:
        data = b""
        async for block in request.stream():
            data += block
            if len(data) > max_bytes:
                break  # one byte too many is enough for the decoder to refuse it
        parameters = request.query_params
        yield ImageQuery(data, _k(parameters.get("k")), _condition(parameters.get("filter")))


def _k(value: object) -> int:
    if value is None:
        return 10
    try:
        return _K.validate_python(value)
    except ValidationError as error:
        raise InvalidSearch(f"k is a whole number from 1 to {MAX_K}.") from error


def _condition(value: object) -> dict[str, Any] | None:
    if value is None or value == "":
        return None
    try:
        condition = json.loads(str(value))
    except (ValueError, RecursionError) as error:
        raise InvalidSearch(f"The filter is not JSON: {error}") from error
    if not isinstance(condition, dict):
        raise InvalidSearch("The filter is a JSON object.")
    return condition


@router.post("/{name}/search", openapi_extra=_BODY)
def search_by_image(
    name: NamePath,
    image: Annotated[ImageQuery, Depends(_image_query)],
    parts: PartsDependency,
    generation: Which = "active",
) -> ImageAnswer:
    """Return the nearest items of an image; `generation=next` asks an open upgrade's candidate before its cutover."""
    query = Query(image.k, image.condition, generation)
    answer = search_image(parts.database, parts.encoders, parts.replicas, name, image.data, query)
    return ImageAnswer(
        model_version=answer.model_version,
        generation=answer.generation,
        revision=answer.revision,
        neighbors=_views(answer)[0],
    )


@router.post("/{name}/search/vectors")
def search_by_vectors(
    name: NamePath, body: VectorsQuery, parts: PartsDependency, generation: Which = "active"
) -> VectorsAnswer:
    """Return the nearest items of each vector, which must be of the answering generation's model version."""
    query = Query(body.k, body.filter, generation, body.model_version)
    answer = search_vectors(parts.database, parts.replicas, name, body.vectors, query)
    return VectorsAnswer(
        model_version=answer.model_version,
        generation=answer.generation,
        revision=answer.revision,
        neighbors=_views(answer),
    )


def _views(answer: Answer) -> list[list[NeighborView]]:
    return [
        [
            NeighborView(id=n.id, distance=n.distance, origin=n.origin, label=n.label, metadata=n.metadata)
            for n in neighbors
        ]
        for neighbors in answer.neighbors
    ]
