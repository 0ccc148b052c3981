"""`POST /v1/galleries/{g}/embeddings`: import of vectors that a user already has."""

import tempfile
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.api.bodies import FILE, body_of
from service.api.dependencies import Name, NamePath, PartsDependency
from service.domain.gallery.imports import import_embeddings

router = APIRouter(prefix="/galleries", tags=["embeddings"])

_IN_MEMORY_BYTES = 16 * 2**20
_BODY = body_of(dict.fromkeys(("application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"), FILE))


class ImportAnswer(BaseModel):
    count: int


async def _spooled_body(request: Request) -> AsyncIterator[BinaryIO]:
    """The body in memory, or on disk when it is large: Parquet is read from its end."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as body:
        async for block in request.stream():
            await run_in_threadpool(body.write, block)
        body.seek(0)
        yield body  # type: ignore[misc]  # a spooled file is a BinaryIO in all but name


@router.post("/{name}/embeddings", openapi_extra=_BODY)
def post_embeddings(
    name: NamePath,
    body: Annotated[BinaryIO, Depends(_spooled_body)],
    parts: PartsDependency,
    model_version: Name | None = None,
) -> ImportAnswer:
    """Store an Arrow IPC stream or a Parquet file with columns id, embedding, side_information?, label?, metadata?.

    All rows or none. With `model_version`, 409 unless it is the active generation's. Between a cutover and its
    finalize, previous_embedding and previous_side_information keep the rows for a rollback.
    """
    return ImportAnswer(count=import_embeddings(parts.writer, name, body, model_version))
