"""`/v1/galleries/{g}/query-sets`: queries of which a user says what they should find, kept for every upgrade."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, TypeAdapter
from starlette.datastructures import UploadFile

from service.api.bodies import FILE, TABLE, body_of, form_of
from service.api.dependencies import Name, NamePath, PartsDependency, SessionDependency
from service.api.images import OF_IMAGES, DescriptionsForm, InvalidUpload, id_of, read_descriptions, read_file
from service.api.json_bodies import Body
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.spooled_form import Form
from service.api.uploads import InvalidName, is_form, name_part, read_upload_form, spooled_body
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.new_items import InvalidItem
from service.domain.judging import query_sets
from service.domain.judging.new_queries import InvalidQueries, NewQuery
from service.domain.judging.query_sets import OtherQueries, QueryImage, QuerySetDetails, QuerySetExists, UnknownQuerySet
from service.domain.registry.versions import UnknownVersion
from service.errors import Unprocessable
from service.tables import QueryKind

router = APIRouter(prefix="/galleries", tags=["judging"])

_SHAPE = "{id?, item_id?, label? or relevant?, slice?}"


class InvalidQuerySet(Unprocessable):
    """The parameters do not fit the body."""


class QueryDescription(Body):
    """What is said about one image; `id` defaults to the file's name."""

    id: str | None = None
    item_id: str | None = None
    label: str | None = None
    relevant: list[str] = Field(default_factory=list)
    slice: str | None = None


class QuerySetView(BaseModel):
    """`labelled` queries have a label, the others relevant items. `vectors` says how many have a vector under which
    model version: of images, how many were encoded by it so far. No item has the `unknown_ids`, of those that are
    relevant or a query's own item, and none has the `unknown_labels`: they count nothing until one does."""

    name: str
    kind: QueryKind
    queries: int
    labelled: int
    unknown_ids: int
    unknown_labels: int
    vectors: dict[str, int]
    created_at: datetime


_OF_QUERIES = DescriptionsForm("queries", _SHAPE, TypeAdapter(list[QueryDescription]))
_FORM = form_of(
    {
        "name": {"type": "string"},
        "files": {"type": "array", "items": FILE},
        "queries": {"type": "string", "description": f"JSON list of {_SHAPE}, one per file in file order"},
    },
    required=["name", "files", "queries"],
)


async def _form_or_table(request: Request) -> AsyncIterator[Form | BinaryIO]:
    if is_form(request):
        async with asynccontextmanager(read_upload_form)(request) as form:
            yield form
    else:
        async with asynccontextmanager(spooled_body)(request) as table:
            yield table


@router.post(
    "/{gallery}/query-sets",
    status_code=201,
    openapi_extra=body_of(_FORM | TABLE),
    responses=refusals(
        UnknownGallery,
        UnknownVersion,
        QuerySetExists,
        OtherQueries,
        InvalidQuerySet,
        InvalidName,
        InvalidQueries,
        InvalidItem,
        *OF_IMAGES,
    ),
)
def post_queries(
    gallery: NamePath,
    body: Annotated[Form | BinaryIO, Depends(_form_or_table)],
    parts: PartsDependency,
    response: Response,
    name: Name | None = None,
    model_version: Name | None = None,
) -> QuerySetView:
    """Store a new set of images, from a form; or vectors under a model version, from an Arrow IPC stream or a Parquet
    file with columns id, embedding, item_id?, label?, relevant?, slice?, and the parameters `name` and `model_version`.

    All queries or none. Vectors under another version are added by posting them under the same name and ids.
    """
    if isinstance(body, Form):
        if name is not None or model_version is not None:
            raise InvalidQuerySet("Of images, the name is a part of the form, and every model version encodes them.")
        found = _add_images(gallery, body, parts)
    else:
        if name is None or model_version is None:
            raise InvalidQuerySet("Vectors come with the parameters 'name' and 'model_version'.")
        found = query_sets.add_vectors(parts.database, gallery, name, model_version, body)
    response.headers["Location"] = f"/v1/galleries/{gallery}/query-sets/{found.name}"
    return _view(found)


@router.get("/{gallery}/query-sets", responses=refusals(UnknownGallery))
def list_query_sets(
    gallery: NamePath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[QuerySetView]:
    """Return a gallery's query sets in the order they were created."""
    found = query_sets.list_query_sets(session, gallery, decode_cursor(cursor), limit + 1)
    return page_of([_view(details) for details in found], [details.id for details in found], limit)


@router.get("/{gallery}/query-sets/{name}", responses=refusals(UnknownGallery, UnknownQuerySet))
def get_query_set(gallery: NamePath, name: NamePath, session: SessionDependency) -> QuerySetView:
    """Return one query set."""
    return _view(query_sets.get_query_set(session, gallery, name))


@router.delete("/{gallery}/query-sets/{name}", status_code=204, responses=refusals(UnknownGallery, UnknownQuerySet))
def delete_query_set(gallery: NamePath, name: NamePath, parts: PartsDependency) -> None:
    """Delete a query set with its images and vectors; reports that were made with it stay."""
    query_sets.remove_query_set(parts.database, parts.blobs, gallery, name)


def _add_images(gallery: str, form: Form, parts: PartsDependency) -> QuerySetDetails:
    name = name_part(form, "name")
    files = [value for key, value in form.multi_items() if key == "files" and isinstance(value, UploadFile)]
    described = form.getlist("queries")
    if not files or len(described) != 1 or set(form) - {"name", "files", "queries"}:
        raise InvalidUpload("The form has 'name', one or more parts named 'files', each a file, and 'queries'.")
    images = [
        QueryImage(_query(description, file), partial(read_file, file, parts.settings.max_image_bytes))
        for description, file in zip(read_descriptions(form, _OF_QUERIES, len(files)), files, strict=True)
    ]
    return query_sets.add_image_set(parts.database, parts.blobs, parts.search.encoders.images, gallery, name, images)


def _query(description: QueryDescription, file: UploadFile) -> NewQuery:
    return NewQuery(
        external_id=id_of(description.id, file, "queries"),
        item_id=description.item_id,
        label=description.label,
        relevant=tuple(description.relevant),
        slice=description.slice,
    )


def _view(details: QuerySetDetails) -> QuerySetView:
    return QuerySetView(
        name=details.name,
        kind=details.kind,
        queries=details.queries,
        labelled=details.labelled,
        unknown_ids=details.unknown_ids,
        unknown_labels=details.unknown_labels,
        vectors=details.vectors,
        created_at=details.created_at,
    )
