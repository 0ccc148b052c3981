"""`/v1/model-versions`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import Name, NamePath, PartsDependency, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.uploads import UploadForm, file_part, optional_file_part, refuse_other_parts, text_part
from service.domain import registry
from service.tables import ModelVersion

router = APIRouter(prefix="/model-versions", tags=["model versions"])

Dim = Annotated[int, Field(ge=1, le=16_000)]  # pgvector's limit for a column
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class PreprocessingSpec(BaseModel):
    """As `models.preprocessing.Preprocessing`."""

    model_config = ConfigDict(extra="forbid")

    size: int
    resize: int | None = None
    crop: Literal["none", "center"] = "none"
    mean: Channels
    std: Channels
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"


class ModelVersionSpec(BaseModel):
    """What the part `spec` holds, as JSON."""

    model_config = ConfigDict(extra="forbid")

    embedding_dim: Dim
    side_information_dim: Dim | None = None
    normalize: bool = False
    preprocessing: PreprocessingSpec


class ModelVersionView(BaseModel):
    name: str
    embedding_dim: int
    side_information_dim: int | None
    normalize: bool
    preprocessing: dict[str, Any]
    embedding_model_kind: str
    embedding_model_digest: str
    side_information_model_kind: str | None
    side_information_model_digest: str | None
    created_at: datetime


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_FORM = body_of(
    form_of(
        {
            "name": {"type": "string"},
            "spec": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": "JSON: embedding_dim, side_information_dim?, normalize?, preprocessing"
                " {size, resize?, crop?, mean, std, interpolation?}",
            },
            "embedding_model": FILE,
            "side_information_model": FILE,
        },
        required=["name", "spec", "embedding_model"],
    )
)


def _view(version: ModelVersion) -> ModelVersionView:
    return ModelVersionView.model_validate(version, from_attributes=True)


@router.post("", status_code=201, openapi_extra=_FORM)
def register_model_version(
    form: UploadForm, parts: PartsDependency, session: SessionDependency, response: Response
) -> ModelVersionView:
    """Register φ and optionally ψ: ONNX, safetensors of our own networks, or TorchScript where it is trusted."""
    refuse_other_parts(form, {"name", "spec", "embedding_model", "side_information_model"})
    try:
        name = _NAME.validate_python(text_part(form, "name"))
        spec = ModelVersionSpec.model_validate_json(text_part(form, "spec"))
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"location": list(e["loc"]), "detail": e["msg"]} for e in error.errors(include_context=False)
        ]
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise registry.InvalidRegistration(f"The name or the spec is not valid: {where}", errors) from error

    version = registry.register_model_version(
        registry.NetworkStore(session, parts.blobs, parts.settings),
        name,
        registry.VersionSpec(
            spec.embedding_dim, spec.side_information_dim, spec.normalize, spec.preprocessing.model_dump()
        ),
        file_part(form, "embedding_model"),
        optional_file_part(form, "side_information_model"),
    )

    response.headers["Location"] = f"/v1/model-versions/{version.name}"
    return _view(version)


@router.get("")
def list_model_versions(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[ModelVersionView]:
    """Return model versions, oldest first."""
    found = registry.list_versions(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(version) for version in found], [version.id for version in found], limit)


@router.get("/{name}")
def get_model_version(name: NamePath, session: SessionDependency) -> ModelVersionView:
    """Return one model version."""
    return _view(registry.get_version(session, name))


@router.delete("/{name}", status_code=204)
def delete_model_version(name: NamePath, parts: PartsDependency) -> None:
    """Delete a model version; 409 while a gallery or a transformation refers to it."""
    registry.remove_version(parts.database, parts.blobs, name)
