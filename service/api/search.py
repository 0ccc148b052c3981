"""`POST /v1/galleries/{g}/search`: by an image, by vectors, or by items of the gallery."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from service import identity
from service.api.admission import TooManyQueries
from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import NAME_PATTERN, Name, NamePath, PartsDependency
from service.api.images import OF_IMAGES
from service.api.json_bodies import Body, JsonRoute, is_json, parse_json, read_json
from service.api.refusals import refusals
from service.api.request_logs import name_subject
from service.api.search_answers import BatchAnswer, ImageAnswer, written_of_each, written_of_one
from service.api.uploads import is_form, read_upload_form, texts_of
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.generations import NoNextGeneration, NoSuchGeneration
from service.domain.gallery.items import UnknownItem
from service.domain.gallery.new_items import InvalidItem
from service.domain.search.answers import MAX_K, InvalidQuery, Query
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


_NAME = TypeAdapter(Name)
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
    return written_of_one(name, query, answer)


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
    write = partial(written_of_each, name, query)
    return await parts.vector_queries.answer(parts.search, name, body.vectors, query, write)


class PlainCalls(JsonRoute):
    """The route of `search_by_vectors`: calls without parameters are checked and made here, since to have FastAPI do it
    takes a tenth of a query's time. It makes the others, and refuses those that are not valid."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def call_or_answer(request: Request) -> Response:
            if request.scope["query_string"] or not is_json(request.headers) or not await request.body():
                return await answer(request)
            try:
                name = _NAME.validate_python(request.path_params["name"])
                body = VectorsQuery.model_validate(await read_json(request))
            except ValidationError:
                return await answer(request)
            name_subject(request)
            return await search_by_vectors(name, body, request.app.state.parts)

        return call_or_answer


router.add_api_route(
    "/{name}/search/vectors",
    search_by_vectors,
    methods=["POST"],
    route_class_override=PlainCalls,
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
    return written_of_each(name, query, answer)
