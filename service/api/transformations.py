"""`/v1/transformations`."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from service.api.dependencies import IdPath, PartsDependency, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.uploads import UploadForm, file_part, name_part, optional_file_part, refuse_other_parts
from service.domain import registry
from service.tables import ModelVersion, Transformation

router = APIRouter(prefix="/transformations", tags=["transformations"])


class TransformationView(BaseModel):
    id: int
    from_version: str
    to_version: str
    h_kind: str
    h_digest: str
    g_kind: str | None
    g_digest: str | None
    architecture: dict[str, Any]
    training: dict[str, Any] | None
    metrics: dict[str, Any] | None
    created_at: datetime


_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["from_version", "to_version", "h"],
                    "properties": {
                        "from_version": {"type": "string"},
                        "to_version": {"type": "string"},
                        "h": _FILE,
                        "g": _FILE,
                    },
                }
            }
        },
    }
}


def _view(session: Session, transformation: Transformation) -> TransformationView:
    return TransformationView(
        id=transformation.id,
        from_version=session.get_one(ModelVersion, transformation.from_version_id).name,
        to_version=session.get_one(ModelVersion, transformation.to_version_id).name,
        h_kind=transformation.h_kind,
        h_digest=transformation.h_digest,
        g_kind=transformation.g_kind,
        g_digest=transformation.g_digest,
        architecture=transformation.architecture,
        training=transformation.training,
        metrics=transformation.metrics,
        created_at=transformation.created_at,
    )


@router.post("", status_code=201, openapi_extra=_FORM)
def register_transformation(
    form: UploadForm, parts: PartsDependency, session: SessionDependency, response: Response
) -> TransformationView:
    """Register a trained h, and optionally g, from one model version to another."""
    refuse_other_parts(form, {"from_version", "to_version", "h", "g"})
    transformation = registry.register_transformation(
        session,
        parts.blobs,
        parts.settings,
        name_part(form, "from_version"),
        name_part(form, "to_version"),
        file_part(form, "h"),
        optional_file_part(form, "g"),
    )
    response.headers["Location"] = f"/v1/transformations/{transformation.id}"
    return _view(session, transformation)


@router.get("")
def list_transformations(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[TransformationView]:
    """Return transformations, oldest first."""
    found = registry.list_transformations(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(session, row) for row in found], [row.id for row in found], limit)


@router.get("/{transformation_id}")
def get_transformation(transformation_id: IdPath, session: SessionDependency) -> TransformationView:
    """Return one transformation."""
    return _view(session, registry.get_transformation(session, transformation_id))


@router.delete("/{transformation_id}", status_code=204)
def delete_transformation(transformation_id: IdPath, parts: PartsDependency) -> None:
    """Delete a transformation that no upgrade used."""
    with parts.database.session_scope() as session:
        digests = registry.delete_transformation(session, transformation_id)
    with parts.database.session_scope() as session:
        registry.delete_unreferenced_blobs(session, parts.blobs, digests)
