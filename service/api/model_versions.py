"""`/v1/model-versions`."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, Field, model_validator

from service.api.bodies import FILES, SHARED, body_of, form_of
from service.api.dependencies import NamePath, PartsDependency, SessionDependency
from service.api.json_bodies import Body
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.spooled_form import Form
from service.api.uploads import (
    InvalidName,
    InvalidSpec,
    UploadForm,
    flag_part,
    name_part,
    network_part,
    optional_network_part,
    refuse_other_parts,
    spec_part,
)
from service.domain.registry import versions
from service.domain.registry.registration import InvalidRegistration, Registration, VersionNetworks, VersionSpec
from service.domain.registry.versions import UnknownVersion, VersionExists, VersionHasNetworks, VersionInUse
from service.networks.encoders import EncoderForm
from service.networks.trials import (
    Channels,
    DeclaredEncoders,
    ImageInput,
    InputDtype,
    InvalidArtifact,
    Layout,
    TooManyTrials,
)
from service.tables import ModelVersion

router = APIRouter(prefix="/model-versions", tags=["model versions"])

Dim = Annotated[int, Field(ge=1, le=16_000)]  # pgvector's limit for a column


def _one_or_three(values: list[float]) -> list[float]:
    if len(values) not in (1, 3):
        raise ValueError("There is one number for each channel: three, or one of grey.")
    return values


OfChannels = Annotated[list[float], AfterValidator(_one_or_three)]
Edges = Annotated[list[int], Field(min_length=2, max_length=2)]


class PreprocessingSpec(Body):
    """As `models.preprocessing.Preprocessing`: `size` is an edge or [height, width]; `mean` and `std` have a number for
    each channel, and are left out only for values from 0 to 255 that are taken as they are."""

    size: int | Edges
    resize: int | None = None
    crop: Literal["none", "center", "squash"] = "none"
    mean: OfChannels | None = None
    std: OfChannels | None = None
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bilinear"


class InputSpec(Body):
    """What both networks take. What is not given is as their files say, or the usual: nchw, rgb, float32, [0, 1]."""

    layout: Layout | None = None
    channels: Channels | None = None
    dtype: InputDtype | None = None
    range: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    name: str | None = Field(default=None, min_length=1)

    @property
    def declared(self) -> ImageInput:
        return ImageInput(self.layout, self.channels, self.dtype, self.range, self.name)


class OutputSpec(Body):
    """Of several outputs, the one that is meant."""

    name: str = Field(min_length=1)


class ModelVersionSpec(Body):
    """What the part `spec` holds, as JSON. `side_information_output` is as `output` unless it is given, if ψ has one of
    that name. `preprocessing` is left out of a version without networks."""

    embedding_dim: Dim
    side_information_dim: Dim | None = None
    normalize: bool = False
    preprocessing: PreprocessingSpec | None = None
    input: InputSpec = InputSpec()
    output: OutputSpec | None = None
    side_information_output: OutputSpec | None = None

    @model_validator(mode="after")
    def _networks_are_given_images(self) -> Self:
        of_networks = {"input", "output", "side_information_output"} & self.model_fields_set
        if self.preprocessing is None and of_networks:
            raise ValueError(f"There is no preprocessing, but {', '.join(sorted(of_networks))} of networks.")
        return self

    @property
    def declared(self) -> VersionSpec:
        return VersionSpec(self.embedding_dim, self.side_information_dim, self.normalize, self._declared_encoders())

    def _declared_encoders(self) -> DeclaredEncoders | None:
        if self.preprocessing is None:
            return None
        side_output = self.side_information_output
        return DeclaredEncoders(
            self.embedding_dim,
            self.side_information_dim,
            self.preprocessing.model_dump(),
            self.input.declared,
            None if self.output is None else self.output.name,
            None if side_output is None else side_output.name,
        )


class NetworkInputView(BaseModel):
    """How a network is given images; null where neither its file nor the spec said it, and the usual is taken."""

    layout: str | None
    channels: str
    dtype: str | None
    range: list[int]
    name: str | None
    batch: int | None


class NetworkFormView(BaseModel):
    """How a network is run; `output` is null where it has one without a name."""

    input: NetworkInputView
    output: str | None


class ModelVersionView(BaseModel):
    """`shared`: all tenants use it. What is of networks is null for a version without them, which encodes no images."""

    name: str
    shared: bool
    embedding_dim: int
    side_information_dim: int | None
    normalize: bool
    preprocessing: dict[str, Any] | None
    embedding_model_kind: str | None
    embedding_model_digest: str | None
    embedding_model_form: NetworkFormView | None
    side_information_model_kind: str | None
    side_information_model_digest: str | None
    side_information_model_form: NetworkFormView | None
    created_at: datetime


_NETWORK_PARTS: dict[str, Any] = {
    "spec": {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "JSON: embedding_dim, side_information_dim?, normalize?, and of networks preprocessing"
        " {size, resize?, crop?, mean?, std?, interpolation?},"
        " input? {layout?, channels?, dtype?, range?, name?}, output? {name}, side_information_output? {name}",
    },
    "embedding_model": FILES,
    "side_information_model": FILES,
}
_FORM = body_of(form_of({"name": {"type": "string"}, **_NETWORK_PARTS, "shared": SHARED}, required=["name", "spec"]))
_NETWORKS_FORM = body_of(form_of(_NETWORK_PARTS, required=["spec", "embedding_model"]))


def _view(version: ModelVersion) -> ModelVersionView:
    return ModelVersionView(
        name=version.name,
        shared=version.tenant is None,
        embedding_dim=version.embedding_dim,
        side_information_dim=version.side_information_dim,
        normalize=version.normalize,
        preprocessing=version.preprocessing,
        embedding_model_kind=version.embedding_model_kind,
        embedding_model_digest=version.embedding_model_digest,
        embedding_model_form=_form_view(version.embedding_model_form) if version.has_networks else None,
        side_information_model_kind=version.side_information_model_kind,
        side_information_model_digest=version.side_information_model_digest,
        side_information_model_form=(
            None if version.side_information_model_digest is None else _form_view(version.side_information_model_form)
        ),
        created_at=version.created_at,
    )


def _form_view(stored: dict[str, Any]) -> NetworkFormView:
    form = EncoderForm.from_json(stored)
    network = form.network
    taken = NetworkInputView(
        layout=network.layout,
        channels=form.channels,
        dtype=network.dtype,
        range=list(form.value_range),
        name=next(iter(network.inputs), None),
        batch=network.batch,
    )
    return NetworkFormView(input=taken, output=network.output)


@router.post(
    "",
    status_code=201,
    openapi_extra=_FORM,
    responses=refusals(VersionExists, InvalidName, InvalidSpec, InvalidArtifact, InvalidRegistration, TooManyTrials),
)
def register_model_version(form: UploadForm, parts: PartsDependency, response: Response) -> ModelVersionView:
    """Register φ and optionally ψ: ONNX, safetensors of our own networks, or TorchScript where it is trusted. ONNX that
    keeps its weights in other files comes with them, in parts of the same name.

    Without files, the version is of vectors alone: its galleries import and search vectors, and encode no images until
    its networks are added.
    """
    refuse_other_parts(form, {"name", *_NETWORK_PARTS, "shared"})
    registration = Registration(parts.database, parts.blobs, parts.settings)
    has_networks = any(part in form for part in ("embedding_model", "side_information_model"))
    version = registration.of_version(
        name_part(form, "name"),
        spec_part(form, ModelVersionSpec).declared,
        _networks_of(form) if has_networks else None,
        shared=flag_part(form, "shared"),
    )

    response.headers["Location"] = f"/v1/model-versions/{version.name}"
    return _view(version)


@router.put(
    "/{name}/networks",
    openapi_extra=_NETWORKS_FORM,
    responses=refusals(
        UnknownVersion, VersionHasNetworks, InvalidSpec, InvalidArtifact, InvalidRegistration, TooManyTrials
    ),
)
def add_networks(name: NamePath, form: UploadForm, parts: PartsDependency) -> ModelVersionView:
    """Add φ and, where the version has side-information, ψ to a version that was registered without networks. The form
    is that of a registration; its spec says the dimensions that the version has."""
    refuse_other_parts(form, set(_NETWORK_PARTS))
    registration = Registration(parts.database, parts.blobs, parts.settings)
    return _view(registration.add_networks(name, spec_part(form, ModelVersionSpec).declared, _networks_of(form)))


def _networks_of(form: Form) -> VersionNetworks:
    return VersionNetworks(network_part(form, "embedding_model"), optional_network_part(form, "side_information_model"))


@router.get("")
def list_model_versions(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[ModelVersionView]:
    """Return model versions, oldest first."""
    found = versions.list_versions(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(version) for version in found], [version.id for version in found], limit)


@router.get("/{name}", responses=refusals(UnknownVersion))
def get_model_version(name: NamePath, session: SessionDependency) -> ModelVersionView:
    """Return one model version."""
    return _view(versions.get_version(session, name))


@router.delete("/{name}", status_code=204, responses=refusals(UnknownVersion, VersionInUse))
def delete_model_version(name: NamePath, parts: PartsDependency) -> None:
    """Delete a model version; 409 while a gallery or a transformation refers to it."""
    versions.remove_version(parts.database, parts.blobs, name)
