"""`POST /v1/galleries/{g}/embeddings`: import of vectors that a user already has."""

from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from service.api.bodies import TABLE, body_of
from service.api.dependencies import Name, NamePath, PartsDependency
from service.api.uploads import spooled_body
from service.domain.gallery.imports import import_embeddings

router = APIRouter(prefix="/galleries", tags=["embeddings"])

_BODY = body_of(TABLE)


class ImportAnswer(BaseModel):
    count: int


@router.post("/{name}/embeddings", openapi_extra=_BODY)
def post_embeddings(
    name: NamePath,
    body: Annotated[BinaryIO, Depends(spooled_body)],
    parts: PartsDependency,
    model_version: Name | None = None,
) -> ImportAnswer:
    """Store an Arrow IPC stream or a Parquet file with columns id, embedding, side_information?, label?, metadata?.

    All rows or none. With `model_version`, 409 unless it is the active generation's. Between a cutover and its
    finalize, previous_embedding and previous_side_information keep the rows for a rollback.
    """
    return ImportAnswer(count=import_embeddings(parts.writer, name, body, model_version))
