"""`/v1/galleries/{g}/embeddings`: import of vectors that a user already has, and export of those of a generation."""

from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from service.api.bodies import TABLE, body_of
from service.api.dependencies import Name, NamePath, PartsDependency
from service.api.refusals import refusals
from service.api.streams import ExportResponse
from service.api.uploads import spooled_body
from service.domain.gallery import exports
from service.domain.gallery.exports import Wanted
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.generations import NoNextGeneration, NoSuchGeneration
from service.domain.gallery.imports import OtherSpace, import_embeddings
from service.networks.decoded_bytes import ImagesTooBusy
from service.vectors.table_streams import TableFormat

router = APIRouter(prefix="/galleries", tags=["embeddings"])

_BODY = body_of(TABLE)


_TABLE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {media_type: {"schema": schema} for media_type, schema in TABLE.items()},
        "headers": {
            "Gallery-Generation": {"schema": {"type": "integer"}},
            "Gallery-Model-Version": {"schema": {"type": "string"}},
            "Gallery-Revision": {"schema": {"type": "integer"}},
            "Gallery-Rows": {"schema": {"type": "integer"}, "description": "Of the whole generation."},
            "Next-Cursor": {"schema": {"type": "string"}, "description": "Where `limit` left rows out."},
        },
    }
}


class ImportAnswer(BaseModel):
    count: int


@router.post("/{name}/embeddings", openapi_extra=_BODY, responses=refusals(UnknownGallery, OtherSpace, ImagesTooBusy))
def post_embeddings(
    name: NamePath,
    body: Annotated[BinaryIO, Depends(spooled_body)],
    parts: PartsDependency,
    model_version: Name | None = None,
) -> ImportAnswer:
    """Store an Arrow IPC stream or a Parquet file with columns id, embedding, side_information?, label?, metadata?,
    image_uri?, and origin?, hops?, uncertainty? of vectors that were upgraded elsewhere.

    All rows or none. With `model_version`, 409 unless it is the active generation's. Between a cutover and its
    finalize, previous_embedding and previous_side_information keep the rows for a rollback.
    """
    return ImportAnswer(count=import_embeddings(parts.writer, name, body, model_version))


@router.get(
    "/{name}/embeddings",
    response_class=Response,
    responses=_TABLE
    | refusals(
        UnknownGallery,
        NoSuchGeneration,
        NoNextGeneration,
        exports.NotACursor,
        exports.CursorGone,
        exports.TooManyExports,
    ),
)
def get_embeddings(
    name: NamePath,
    parts: PartsDependency,
    generation: Annotated[
        str, Query(pattern=r"^(active|next|[1-9]\d{0,17})$", description="active, next, or an id")
    ] = "active",
    format_: Annotated[TableFormat, Query(alias="format")] = "arrow",
    limit: Annotated[int | None, Query(ge=1, lt=2**31, description="left out, all of them")] = None,
    cursor: Annotated[str | None, Query(pattern=exports.CURSOR_PATTERN)] = None,
) -> Response:
    """Stream a generation's rows as an Arrow IPC stream or a Parquet file, all of one revision of the gallery, with the
    columns id, embedding, side_information?, origin, hops, uncertainty, label, metadata (JSON) and image_uri.

    `cursor`, from Next-Cursor or from the custom metadata of an Arrow batch, continues while the generation's rows are
    the same; else 410. What comes out can be imported again.
    """
    export = parts.exports.open(Wanted(name, generation, format_, limit, cursor))
    return ExportResponse(export, format_, parts.settings.export_stalled_after_seconds)
