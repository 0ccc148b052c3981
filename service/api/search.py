"""`POST /v1/galleries/{g}/search`: by an image, by vectors, or by items of the gallery."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from starlette.datastructures import UploadFile

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import NAME_PATTERN, NamePath, PartsDependency
from service.api.items import thumbnail_url
from service.api.problems import MEDIA_TYPE
from service.api.uploads import read_upload_form
from service.domain.search.queries import MAX_K, Answer, Neighbor, Query
from service.errors import Unprocessable

if TYPE_CHECKING:
    from service.api.admission import Admission

router = APIRouter(prefix="/galleries", tags=["search"])

K = Annotated[int, Field(ge=1, le=MAX_K)]
MaxDistance = Annotated[float, Field(allow_inf_nan=False)]
Which = Literal["active", "next"]
_MAX_QUERIES = 1000
_MAX_NEIGHBORS = 100_000
_MAX_DIM = 16_000


class InvalidSearch(Unprocessable):
    """The search request is not one image with its options."""


class NeighborView(BaseModel):
    """`uncertainty` is the squared error (l2) that h expects of the item's embedding, null where no h made it or h does
    not say. `thumbnail_url` is null for an item without one: it was imported, or the gallery keeps none."""

    id: str
    distance: float
    origin: str
    uncertainty: float | None
    label: str | None
    metadata: dict[str, Any]
    thumbnail_url: str | None


class ImageAnswer(BaseModel):
    """Neighbours of the image, nearest first, and the one generation that they all come from.

    `exact` is true when all vectors that pass the filter were compared with the query, as the index holds them (float16
    in a graph), and false when a graph was walked, which may miss a few of the nearest.
    """

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[NeighborView]


class BatchAnswer(BaseModel):
    """The same, with one list of neighbours per query; `exact` when it is so of all of them."""

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[list[NeighborView]]


class VectorsQuery(BaseModel):
    """With `model_version`, 409 unless the generation that answers is under it. Neighbours farther than `max_distance`
    are left out, and so is the item `exclude_id`. All vectors together have at most 100,000 neighbours."""

    model_config = ConfigDict(extra="forbid")

    vectors: Annotated[
        list[Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=_MAX_DIM)]],
        Field(min_length=1, max_length=_MAX_QUERIES),
    ]
    k: K = 10
    filter: dict[str, Any] | None = None
    max_distance: MaxDistance | None = None
    exclude_id: str | None = None
    model_version: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        _check_answer_size(len(self.vectors) * self.k)
        return self


class ItemsQuery(BaseModel):
    """Items of the gallery to find the neighbours of, at most 100,000 in all; with `exclude_self`, no item is its own
    neighbour."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[str], Field(min_length=1, max_length=_MAX_QUERIES)]
    k: K = 10
    filter: dict[str, Any] | None = None
    max_distance: MaxDistance | None = None
    exclude_self: bool = True

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        _check_answer_size(len(self.ids) * self.k)
        return self


def _check_answer_size(neighbors: int) -> None:
    if neighbors > _MAX_NEIGHBORS:
        raise ValueError(f"one answer has at most {_MAX_NEIGHBORS:,} neighbours: ask for fewer of each, or in parts")


@dataclass(frozen=True)
class ImageQuery:
    """The image's bytes and its options, from a form or from a raw body with query parameters."""

    data: bytes
    options: Query


_K = TypeAdapter(K)
_MAX_DISTANCE = TypeAdapter(MaxDistance)
_OPTIONS: dict[str, dict[str, Any]] = {
    "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
    "filter": {"type": "string", "description": "JSON condition"},
    "max_distance": {"type": "number", "description": "neighbours farther away are left out"},
    "exclude_id": {"type": "string", "description": "an item that is left out"},
}
_BODY = {
    **body_of({**form_of({"file": FILE, **_OPTIONS}, required=["file"]), "image/*": FILE}),
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "with a raw image body"}
        for name, schema in _OPTIONS.items()
    ],
}

_REFUSALS: dict[int | str, dict[str, Any]] = {
    429: {
        "description": "Too many image queries wait already",
        "headers": {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "in seconds"}},
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                    },
                }
            }
        },
    }
}


async def _image_query(request: Request) -> AsyncIterator[ImageQuery]:
    """Give the query once it is its turn. Raises `TooManyQueries` (429), at best before the body is read."""
    admission: Admission = request.app.state.parts.image_queries
    admission.refuse_if_full()
    query = await _read_query(request)
    async with admission.turn():
        yield query


async def _read_query(request: Request) -> ImageQuery:
    max_bytes: int = request.app.state.parts.settings.max_image_bytes
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with asynccontextmanager(read_upload_form)(request) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile) or set(form) - {"file", *_OPTIONS}:
                raise InvalidSearch(f"The form has one file named 'file', and optionally {', '.join(_OPTIONS)}.")
            return _with_options(await file.read(max_bytes + 1), form)
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > max_bytes:
            break  # one byte too many is enough for the decoder to refuse it
    return _with_options(bytes(data), request.query_params)


def _with_options(data: bytes, options: Mapping[str, object]) -> ImageQuery:
    query = Query(
        _k(options.get("k")),
        _condition(options.get("filter")),
        max_distance=_max_distance(options.get("max_distance")),
        exclude_id=_exclude_id(options.get("exclude_id")),
    )
    return ImageQuery(data, query)


def _k(value: object) -> int:
    if value is None:
        return 10
    try:
        return _K.validate_python(value)
    except ValidationError as error:
        raise InvalidSearch(f"k is a whole number from 1 to {MAX_K}.") from error


def _max_distance(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        return _MAX_DISTANCE.validate_python(value)
    except ValidationError as error:
        raise InvalidSearch("max_distance is a finite number.") from error


def _exclude_id(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidSearch("exclude_id is text.")
    return value or None


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


@router.post("/{name}/search", openapi_extra=_BODY, responses=_REFUSALS, response_model=ImageAnswer)
def search_by_image(
    name: NamePath,
    image: Annotated[ImageQuery, Depends(_image_query, scope="function")],
    parts: PartsDependency,
    generation: Which = "active",
) -> Response:
    """Return the nearest items of an image; `generation=next` asks an open upgrade's candidate before its cutover."""
    answer = parts.search.by_image(name, image.data, replace(image.options, generation=generation))
    return _written(ImageAnswer, answer, _views(name, answer)[0])


@router.post("/{name}/search/vectors", response_model=BatchAnswer)
def search_by_vectors(
    name: NamePath, body: VectorsQuery, parts: PartsDependency, generation: Which = "active"
) -> Response:
    """Return the nearest items of each vector, which must be of the answering generation's model version."""
    query = Query(body.k, body.filter, generation, body.model_version, body.max_distance, body.exclude_id)
    answer = parts.search.by_vectors(name, body.vectors, query)
    return _written(BatchAnswer, answer, _views(name, answer))


@router.post("/{name}/search/items", response_model=BatchAnswer)
def search_by_items(name: NamePath, body: ItemsQuery, parts: PartsDependency, generation: Which = "active") -> Response:
    """Return the nearest items of each item, by its embedding in the answering generation; 404 for an unknown id, and
    409 for an item that an open upgrade has yet to bring to `generation=next`."""
    query = Query(body.k, body.filter, generation, max_distance=body.max_distance)
    answer = parts.search.by_items(name, body.ids, query, exclude_self=body.exclude_self)
    return _written(BatchAnswer, answer, _views(name, answer))


def _written(form: type[ImageAnswer] | type[BatchAnswer], answer: Answer, neighbors: list[Any]) -> Response:
    """Return the answer as JSON, written in the thread that made it: FastAPI would check it again, in another one."""
    view = form(
        model_version=answer.model_version,
        generation=answer.generation,
        revision=answer.revision,
        exact=answer.is_exact,
        neighbors=neighbors,
    )
    return Response(view.model_dump_json(), media_type="application/json")


def _views(gallery: str, answer: Answer) -> list[list[NeighborView]]:
    return [[_view(gallery, neighbor) for neighbor in neighbors] for neighbors in answer.neighbors]


def _view(gallery: str, neighbor: Neighbor) -> NeighborView:
    return NeighborView(
        id=neighbor.id,
        distance=neighbor.distance,
        origin=neighbor.origin,
        uncertainty=neighbor.uncertainty,
        label=neighbor.label,
        metadata=neighbor.metadata,
        thumbnail_url=thumbnail_url(gallery, neighbor.id) if neighbor.has_thumbnail else None,
    )
