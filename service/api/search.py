"""`POST /v1/galleries/{g}/search`: by an image, by vectors, or by items of the gallery."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from service import identity
from service.api.admission import TooManyQueries
from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import NAME_PATTERN, NamePath, PartsDependency
from service.api.images import OF_IMAGES
from service.api.items import thumbnail_url
from service.api.json_bodies import Body, JsonRoute, parse_json
from service.api.refusals import refusals
from service.api.uploads import is_form, read_upload_form, texts_of
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.generations import NoNextGeneration, NoSuchGeneration
from service.domain.gallery.items import UnknownItem
from service.domain.gallery.new_items import InvalidItem
from service.domain.search.answers import MAX_K, Answer, InvalidQuery, Neighbor, Query
from service.domain.search.cursors import MAX_TEXT, CursorOutdated, InvalidCursor, TooDeep
from service.domain.search.filters import MAX_PATH, InvalidFilter
from service.domain.search.groups import InvalidGrouping, check_grouping
from service.domain.search.queries import NoCurrentEmbedding, WrongSpace
from service.errors import Unprocessable
from service.networks.micro_batching import NotTried

if TYPE_CHECKING:
    from service.api.admission import Admission

router = APIRouter(prefix="/galleries", tags=["search"], route_class=JsonRoute)

K = Annotated[int, Field(ge=1, le=MAX_K)]
MaxDistance = Annotated[float, Field(allow_inf_nan=False)]
Cursor = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
GroupBy = Annotated[str, Field(min_length=1, max_length=MAX_PATH)]
GenerationId = Annotated[int, Field(ge=1, lt=2**63)]
Which = Literal["active", "next"] | GenerationId
_MAX_QUERIES = 1000
_MAX_NEIGHBORS = 100_000
_MAX_DIM = 16_000
_MAX_EXCLUDED = 100  # items of a query
_MAX_KEY = 512
_PAGES = (InvalidCursor, TooDeep, CursorOutdated)


class InvalidSearch(Unprocessable):
    """The search request is not one image with its options."""


class NeighborView(BaseModel):
    """`hops` counts the transformations since the item's pixels, or its import. `uncertainty` is the squared error (l2)
    that h expects of its embedding, null where no h made it or h does not say. `thumbnail_url` is null for an item
    without one: it was imported, or the gallery keeps none. `group` comes with `group_by`: the value of which it is the
    best neighbour, null where it has none and is a group by itself."""

    id: str
    distance: float
    origin: str
    hops: int
    uncertainty: float | None
    label: str | None
    metadata: dict[str, Any]
    image_uri: str | None
    thumbnail_url: str | None
    group: str | bool | float | None = None


class ImageAnswer(BaseModel):
    """Neighbours of the image, nearest first, and the one generation that they all come from.

    `exact` is true when all vectors that pass the filter were compared with the query, as the index holds them (float16
    in a graph), and false when a graph was walked, which may miss a few of the nearest. `next_cursor` comes with
    `cursor`, null on the last page. `complete` comes with `group_by`: false where fewer groups than k were found among
    as many neighbours as are looked at.
    """

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[NeighborView]
    next_cursor: str | None = None
    complete: bool | None = None


class BatchAnswer(BaseModel):
    """The same, with one list of neighbours, and one `complete`, per query; `exact` when it is so of all of them."""

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[list[NeighborView]]
    next_cursor: str | None = None
    complete: list[bool] | None = None


class VectorsQuery(Body):
    """With `model_version`, 409 unless the generation that answers is under it. Neighbours farther than `max_distance`
    are left out, and so are the item `exclude_id`, and of each vector those of its list in `exclude_ids`. All vectors
    together have at most 100,000 neighbours, those that are left out included. With a `cursor` there is one vector."""

    vectors: Annotated[
        list[Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=_MAX_DIM)]],
        Field(min_length=1, max_length=_MAX_QUERIES),
    ]
    k: K = 10
    filter: dict[str, Any] | None = None
    max_distance: MaxDistance | None = None
    exclude_id: str | None = None
    exclude_ids: list[Annotated[list[str], Field(max_length=_MAX_EXCLUDED)]] | None = None
    model_version: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None
    cursor: Cursor | None = None
    group_by: GroupBy | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.exclude_ids is not None and len(self.exclude_ids) != len(self.vectors):
            raise ValueError("exclude_ids has a list of ids for each vector")
        left_out = max(map(len, self.exclude_ids or [[]]))
        _check_answer_size(len(self.vectors) * (self.k + left_out))
        return self


class ItemsQuery(Body):
    """Items of the gallery to find the neighbours of, at most 100,000 in all; with `exclude_self`, no item is its own
    neighbour. With a `cursor` there is one item."""

    ids: Annotated[list[str], Field(min_length=1, max_length=_MAX_QUERIES)]
    k: K = 10
    filter: dict[str, Any] | None = None
    max_distance: MaxDistance | None = None
    exclude_self: bool = True
    cursor: Cursor | None = None
    group_by: GroupBy | None = None

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
    "canary_key": {
        "type": "string",
        "maxLength": _MAX_KEY,
        "description": "queries of one key are answered by one generation, while an upgrade has a canary",
    },
    "cursor": {
        "type": "string",
        "maxLength": MAX_TEXT,
        "description": "* asks for the first page, next_cursor for the one after",
    },
    "group_by": {
        "type": "string",
        "maxLength": MAX_PATH,
        "description": "label or metadata.<path>: the best neighbour of each value",
    },
}
_BODY = {
    **body_of({**form_of({"file": FILE, **_OPTIONS}, required=["file"]), "image/*": FILE}),
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "or in the form"}
        for name, schema in _OPTIONS.items()
    ],
}


async def image_query(request: Request) -> AsyncIterator[ImageQuery]:
    """Give the query once it is its turn. Raises `TooManyQueries` (429), at best before the body is read, and
    `ClientDisconnect` where nobody waits for it any more."""
    admission: Admission = request.app.state.parts.image_queries
    gallery = (identity.current.get().tenant, request.path_params["name"])
    admission.refuse_if_full(gallery)
    query = await _read_query(request)
    async with admission.turn(gallery):
        if await request.is_disconnected():
            raise ClientDisconnect
        yield query


async def _read_query(request: Request) -> ImageQuery:
    max_bytes: int = request.app.state.parts.settings.max_image_bytes
    if is_form(request):
        async with asynccontextmanager(read_upload_form)(request) as form:
            file = form.get("file")
            is_one = len(form.getlist("file")) == 1
            if not isinstance(file, UploadFile) or not is_one or set(form) - {"file", *_OPTIONS}:
                raise InvalidSearch(f"The form has one file named 'file', and optionally {', '.join(_OPTIONS)}.")
            twice = set(form) & set(request.query_params)
            if twice:
                raise InvalidSearch(f"{', '.join(sorted(twice))}: given in the form and in the address; give it once.")
            options = {**request.query_params, **texts_of(form, but=frozenset({"file"}))}
            return _with_options(await file.read(max_bytes + 1), options)
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
        canary_key=_text(options, "canary_key", _MAX_KEY),
        cursor=_text(options, "cursor", MAX_TEXT),
        group_by=_grouping(_text(options, "group_by", MAX_PATH)),
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


def _text(options: Mapping[str, object], name: str, most: int) -> str | None:
    value = options.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > most):
        raise InvalidSearch(f"{name} is text of at most {most} characters.")
    return value or None


def _grouping(field: str | None) -> str | None:
    """Return what to group by. Raises `InvalidGrouping` (422)."""
    if field is not None:
        check_grouping(field)
    return field


def _condition(value: object) -> dict[str, Any] | None:
    if value is None or value == "":
        return None
    condition = parse_json(str(value), "The filter")
    if not isinstance(condition, dict):
        raise InvalidSearch("The filter is a JSON object.")
    return condition


@router.post(
    "/{name}/search",
    openapi_extra=_BODY,
    responses=refusals(
        UnknownGallery,
        NoNextGeneration,
        NoSuchGeneration,
        InvalidSearch,
        InvalidFilter,
        InvalidGrouping,
        InvalidQuery,
        *_PAGES,
        TooManyQueries,
        NotTried,
        *OF_IMAGES,
    ),
    response_model=ImageAnswer,
)
def search_by_image(
    name: NamePath,
    image: Annotated[ImageQuery, Depends(image_query, scope="function")],
    parts: PartsDependency,
    generation: Which | SkipJsonSchema[None] = None,
) -> Response:
    """Return the nearest items of an image; `generation=next` asks an open upgrade's candidate before its cutover, and
    `active` never does, and a generation's id is answered by that one while it is stored (410 after). Without it, the
    candidate answers the share that the upgrade's canary says."""
    query = replace(image.options, generation=generation)
    answer = parts.search.by_image(name, image.data, query)
    complete = answer.complete and answer.complete[0]
    return _written(answer, query, _views(name, answer.neighbors[0], query), complete)


@router.post(
    "/{name}/search/vectors",
    response_model=BatchAnswer,
    responses=refusals(
        UnknownGallery,
        NoNextGeneration,
        NoSuchGeneration,
        WrongSpace,
        InvalidItem,
        InvalidFilter,
        InvalidGrouping,
        InvalidQuery,
        *_PAGES,
    ),
)
async def search_by_vectors(
    name: NamePath, body: VectorsQuery, parts: PartsDependency, generation: Which = "active"
) -> Response:
    """Return the nearest items of each vector, which must be of the answering generation's model version. `generation`
    is `active`, `next`, or the id of one that is stored (410 otherwise)."""
    query = Query(
        body.k,
        body.filter,
        generation,
        body.model_version,
        body.max_distance,
        body.exclude_id,
        body.exclude_ids or (),
        cursor=body.cursor,
        group_by=_grouping(body.group_by),
    )
    write = partial(_written_of_each, name, query)
    return await parts.vector_queries.answer(parts.search, name, body.vectors, query, write)


@router.post(
    "/{name}/search/items",
    response_model=BatchAnswer,
    responses=refusals(
        UnknownGallery,
        UnknownItem,
        NoNextGeneration,
        NoSuchGeneration,
        NoCurrentEmbedding,
        InvalidItem,
        InvalidFilter,
        InvalidGrouping,
        InvalidQuery,
        *_PAGES,
    ),
)
def search_by_items(name: NamePath, body: ItemsQuery, parts: PartsDependency, generation: Which = "active") -> Response:
    """Return the nearest items of each item, by its embedding in the answering generation; 404 for an unknown id, and
    409 for an item that an open upgrade has yet to bring to `generation=next`. By its id, any generation that is stored
    answers (410 otherwise)."""
    query = Query(
        body.k,
        body.filter,
        generation,
        max_distance=body.max_distance,
        cursor=body.cursor,
        group_by=_grouping(body.group_by),
    )
    answer = parts.search.by_items(name, body.ids, query, exclude_self=body.exclude_self)
    return _written_of_each(name, query, answer)


def _written_of_each(gallery: str, query: Query, answer: Answer) -> Response:
    return _written(answer, query, [_views(gallery, own, query) for own in answer.neighbors], answer.complete)


def _written(answer: Answer, query: Query, neighbors: list[Any], complete: bool | list[bool] | None) -> Response:
    """Return an `ImageAnswer` or a `BatchAnswer` as JSON, written in the thread that made it and from what there is:
    models would be made of it, and checked, only to be written."""
    view = {
        "model_version": answer.model_version,
        "generation": answer.generation,
        "revision": answer.revision,
        "exact": answer.is_exact,
        "neighbors": neighbors,
    }
    if query.cursor is not None:
        view["next_cursor"] = answer.next_cursor
    if query.group_by is not None:
        view["complete"] = complete
    return Response(orjson.dumps(view), media_type="application/json")


def _views(gallery: str, neighbors: list[Neighbor], query: Query) -> list[dict[str, Any]]:
    """Return what is written of each `NeighborView`."""
    views = [
        {
            "id": item.id,
            "distance": neighbor.distance,
            "origin": item.origin,
            "hops": item.hops,
            "uncertainty": item.uncertainty,
            "label": item.label,
            "metadata": orjson.Fragment(item.metadata),
            "image_uri": item.image_uri,
            "thumbnail_url": thumbnail_url(gallery, item.id) if item.has_thumbnail else None,
        }
        for neighbor in neighbors
        for item in [neighbor.item]
    ]
    if query.group_by is not None:
        for view, neighbor in zip(views, neighbors, strict=True):
            value = neighbor.group
            view["group"] = orjson.Fragment(str(value)) if isinstance(value, Decimal) else value
    return views
