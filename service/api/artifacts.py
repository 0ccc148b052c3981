"""Networks as files: `/v1/model-versions/{name}/artifacts/{part}` and `/v1/transformations/{id}/artifacts/{part}`."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from service.api.dependencies import IdPath, NamePath, PartsDependency
from service.api.refusals import refusals
from service.domain import artifacts
from service.domain.artifacts import NoArtifact, OtherFormat
from service.domain.registry.transformations import UnknownTransformation
from service.domain.registry.versions import UnknownVersion
from service.networks.transformations import NotExportable

router = APIRouter()

_MEDIA_TYPE = "application/octet-stream"
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has it already."},
}
IfNoneMatch = Annotated[str | None, Header(description="Entity tags of what the client has (RFC 9110, 13.1.2).")]


@router.head("/model-versions/{name}/artifacts/{part}", include_in_schema=False)
@router.get(
    "/model-versions/{name}/artifacts/{part}",
    tags=["model versions"],
    response_class=Response,
    responses=_FILE | refusals(UnknownVersion, NoArtifact),
)
def get_version_artifact(
    name: NamePath, part: artifacts.VersionPart, parts: PartsDependency, if_none_match: IfNoneMatch = None
) -> Response:
    """Return a network of a model version, byte for byte as it was registered."""
    return _answer(artifacts.version_artifact(parts.database, parts.blobs, name, part), if_none_match)


@router.head("/transformations/{transformation_id}/artifacts/{part}", include_in_schema=False)
@router.get(
    "/transformations/{transformation_id}/artifacts/{part}",
    tags=["transformations"],
    response_class=Response,
    responses=_FILE | refusals(UnknownTransformation, NoArtifact, OtherFormat, NotExportable),
)
def get_transformation_artifact(
    transformation_id: IdPath,
    part: artifacts.TransformationPart,
    parts: PartsDependency,
    if_none_match: IfNoneMatch = None,
    format_: Annotated[
        artifacts.ExportFormat | None,
        Query(alias="format", description="left out, it comes out as it was registered"),
    ] = None,
) -> Response:
    """Return h or g as it was registered, or one of our own networks as ONNX; 406 for a format that it cannot have."""
    found = artifacts.transformation_artifact(parts.database, parts.blobs, transformation_id, part, format_)
    return _answer(found, if_none_match)


def _answer(artifact: artifacts.Artifact, if_none_match: str | None) -> Response:
    tag = f'"{artifact.digest}"'
    digest = base64.b64encode(bytes.fromhex(artifact.digest)).decode()
    headers = {
        "ETag": tag,
        "Repr-Digest": f"sha-256=:{digest}:",  # RFC 9530
        "Content-Disposition": f'attachment; filename="{artifact.file_name}"',
    }
    if if_none_match is not None and _names(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(artifact.data, media_type=_MEDIA_TYPE, headers=headers)


def _names(if_none_match: str, tag: str) -> bool:
    """Return whether the header names the tag, by weak comparison, or anything at all."""
    given = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return "*" in given or tag in given
