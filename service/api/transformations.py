"""`/v1/transformations`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal, Self

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.concurrency import run_in_threadpool

from service.api.bodies import FILE, FILES, SHARED, body_of, form_of
from service.api.dependencies import IdPath, Name, PartsDependency, SessionDependency
from service.api.jobs import JobView, job_view
from service.api.json_bodies import Body, JsonRoute, NotJson, is_json, parse_json
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.uploads import (
    InvalidName,
    InvalidSpec,
    UploadForm,
    flag_part,
    is_form,
    name_part,
    network_part,
    optional_network_part,
    optional_open_part,
    read_upload_form,
    refuse_other_parts,
    spec_part,
    texts_of,
)
from service.domain.choice import AmbiguousTransformation, NoSoundTransformation
from service.domain.registry import transformations
from service.domain.registry.registration import InvalidRegistration, NetworkStore, Registration
from service.domain.registry.transformations import (
    TransformationDetails,
    TransformationInUse,
    UnknownTransformation,
    UnsoundDefault,
)
from service.domain.registry.versions import UnknownVersion
from service.domain.training.chains import ChainBroken
from service.domain.training.datasets import DatasetRefused
from service.domain.training.paired_vectors import InvalidPairs, TooManyRows
from service.domain.training.trainings import TrainingRefused, WantedTraining, plan_training
from service.networks.encoders import VersionWithoutNetworks
from service.networks.trials import InvalidArtifact, NetworkForm, TooManyTrials, TransformationForms
from service.tables import Task
from service.vectors.arrow import BadRows, InvalidImport, UnknownFormat

router = APIRouter(prefix="/transformations", tags=["transformations"], route_class=JsonRoute)


class TransformationView(BaseModel):
    """`shared`: all tenants use it."""

    id: int
    shared: bool
    from_version: str
    to_version: str
    h_kind: str
    h_digest: str
    g_kind: str | None
    g_digest: str | None
    architecture: dict[str, Any]
    training: dict[str, Any] | None
    metrics: dict[str, Any] | None
    default: bool
    created_at: datetime


class TrainingOptions(Body):
    """What is not given is as the recipe says. `inner_dim` "auto" trains h of 256, 512, 1,024 and 2,048 side by side,
    and takes the narrowest that is as good as the widest on rows that none of them learned from. With `chained`, a
    training from images also learns from what a gallery holds that was upgraded: from what the transformation from each
    other version into `from_version` gives for them (the one that an upgrade would take, with a g, and not one that
    draws items to classes where the task is "instance")."""

    recipe: Literal["paper", "default"] = "default"
    task: Task = "instance"
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    batch: int | None = Field(default=None, ge=2, le=65_536)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    inner_dim: Annotated[int, Field(ge=1, le=8_192)] | Literal["auto"] | None = None
    members: int | None = Field(default=None, ge=1, le=16)
    chained: bool = True

    @model_validator(mode="after")
    def _recipe_can_do_it(self) -> Self:
        if (self.recipe, self.task) == ("paper", "class"):
            raise ValueError("The paper's recipe knows no classes: task 'class' needs the default recipe.")
        if (self.recipe, self.inner_dim) == ("paper", "auto"):
            raise ValueError("The paper's recipe holds no rows out: inner_dim 'auto' needs the default recipe.")
        return self


class NewTraining(Body):
    """`dataset` is a path below the folder that the operator set (GALLERY_DATASETS): class folders of images, Parquet
    with columns image and label, or Parquet of paired vectors. It is left out where paired vectors are uploaded."""

    from_version: Name
    to_version: Name
    dataset: str | None = Field(default=None, min_length=1, max_length=1_000)
    with_g: bool = False
    options: TrainingOptions = TrainingOptions()


class NamedOutput(Body):
    """Of several outputs, the one that is meant."""

    name: str = Field(min_length=1)


class NetworkSpec(Body):
    """How h or g is run: `inputs` are the names of its inputs, the embedding's first."""

    inputs: list[str] = Field(default=[])
    output: NamedOutput | None = None

    @property
    def form(self) -> NetworkForm:
        return NetworkForm(tuple(self.inputs), None if self.output is None else self.output.name)


class TransformationSpec(Body):
    """What the part `spec` holds, as JSON."""

    h: NetworkSpec = NetworkSpec()
    g: NetworkSpec = NetworkSpec()


class TransformationChange(Body):
    """`default` says whether the transformation is taken, of several between its versions, unless one is named."""

    default: bool


_TEXT = {"type": "string"}
_SPEC = {
    "type": "string",
    "contentMediaType": "application/json",
    "description": "JSON: h? and g?, each {inputs?: [names, the embedding's first], output?: {name}}",
}
_FORM = body_of(
    form_of(
        {"from_version": _TEXT, "to_version": _TEXT, "h": FILES, "g": FILES, "spec": _SPEC, "shared": SHARED},
        required=["from_version", "to_version", "h"],
    )
)

_NEW_TRAINING = NewTraining.model_json_schema()
_NEW_TRAINING["properties"]["options"] = TrainingOptions.model_json_schema()
del _NEW_TRAINING["$defs"]
_TRAINING_BODY = body_of(
    {
        "application/json": _NEW_TRAINING,
        "multipart/form-data": {**_NEW_TRAINING, "properties": {**_NEW_TRAINING["properties"], "pairs": FILE}},
    }
)


async def _training(request: Request) -> AsyncIterator[tuple[NewTraining, BinaryIO | None]]:
    """Give what is asked for, and the file of paired vectors if one came: in a form; without one, JSON will do."""
    if not is_form(request):
        if not is_json(request.headers):
            raise NotJson("The body is a form or JSON: Content-Type multipart/form-data or application/json.")
        yield _checked(await run_in_threadpool(parse_json, await request.body())), None
        return
    async with asynccontextmanager(read_upload_form)(request) as form:
        refuse_other_parts(form, {*NewTraining.model_fields, "pairs"})
        values: dict[str, Any] = dict(texts_of(form, but=frozenset({"pairs"})))
        if "options" in values:
            values["options"] = parse_json(values["options"], "The part 'options'")
        if "with_g" in values:
            values["with_g"] = flag_part(form, "with_g")
        yield _checked(values), optional_open_part(form, "pairs")


def _checked(values: Any) -> NewTraining:
    try:
        return NewTraining.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in errors]) from error


def _view(details: TransformationDetails) -> TransformationView:
    transformation = details.transformation
    return TransformationView(
        id=transformation.id,
        shared=transformation.tenant is None,
        from_version=details.from_version,
        to_version=details.to_version,
        h_kind=transformation.h_kind,
        h_digest=transformation.h_digest,
        g_kind=transformation.g_kind,
        g_digest=transformation.g_digest,
        architecture=transformation.architecture,
        training=transformation.training,
        metrics=transformation.metrics,
        default=transformation.is_default,
        created_at=transformation.created_at,
    )


@router.post(
    "",
    status_code=201,
    openapi_extra=_FORM,
    responses=refusals(UnknownVersion, InvalidName, InvalidSpec, InvalidArtifact, InvalidRegistration, TooManyTrials),
)
def register_transformation(form: UploadForm, parts: PartsDependency, response: Response) -> TransformationView:
    """Register a trained h, and optionally g, from one model version to another."""
    refuse_other_parts(form, {"from_version", "to_version", "h", "g", "spec", "shared"})
    spec = spec_part(form, TransformationSpec) if "spec" in form else TransformationSpec()
    registration = Registration(parts.database, parts.blobs, parts.settings)
    details = registration.of_transformation(
        name_part(form, "from_version"),
        name_part(form, "to_version"),
        network_part(form, "h"),
        optional_network_part(form, "g"),
        TransformationForms(spec.h.form, spec.g.form),
        shared=flag_part(form, "shared"),
    )
    response.headers["Location"] = f"/v1/transformations/{details.transformation.id}"
    return _view(details)


@router.post(
    "/train",
    status_code=202,
    openapi_extra=_TRAINING_BODY,
    responses=refusals(
        UnknownVersion,
        AmbiguousTransformation,
        NoSoundTransformation,
        DatasetRefused,
        TrainingRefused,
        ChainBroken,
        InvalidPairs,
        InvalidImport,
        BadRows,
        UnknownFormat,
        TooManyRows,
        VersionWithoutNetworks,
    ),
)
def train_transformation(
    training: Annotated[tuple[NewTraining, BinaryIO | None], Depends(_training)],
    parts: PartsDependency,
    session: SessionDependency,
    response: Response,
) -> JobView:
    """Train h, and with `with_g` also g, from a data set or from uploaded paired vectors.

    The pairs are a Parquet file with columns embedding_from, embedding_to, and optionally side_information_from,
    side_information_to and label. The answer is the job that trains; its result names the transformation.
    """
    new, pairs = training
    options = new.options.model_dump(exclude_none=True, exclude={"chained"})
    chained = new.options.chained
    wanted = WantedTraining(new.from_version, new.to_version, new.with_g, new.dataset, options, chained)
    job = plan_training(NetworkStore(session, parts.blobs, parts.settings), wanted, pairs)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_view(job)


@router.get("")
def list_transformations(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[TransformationView]:
    """Return transformations, oldest first."""
    found = transformations.list_transformations(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(details) for details in found], [details.transformation.id for details in found], limit)


@router.get("/{transformation_id}", responses=refusals(UnknownTransformation))
def get_transformation(transformation_id: IdPath, session: SessionDependency) -> TransformationView:
    """Return one transformation."""
    transformation = transformations.get_transformation(session, transformation_id)
    return _view(transformations.describe_transformation(session, transformation))


@router.patch("/{transformation_id}", responses=refusals(UnknownTransformation, UnsoundDefault))
def change_transformation(
    transformation_id: IdPath, change: TransformationChange, session: SessionDependency
) -> TransformationView:
    """Make a transformation the default between its versions, in the place of the one that was, or no longer so."""
    transformation = transformations.set_default(session, transformation_id, change.default)
    return _view(transformations.describe_transformation(session, transformation))


@router.delete("/{transformation_id}", status_code=204, responses=refusals(UnknownTransformation, TransformationInUse))
def delete_transformation(transformation_id: IdPath, parts: PartsDependency) -> None:
    """Delete a transformation that no upgrade used."""
    transformations.remove_transformation(parts.database, parts.blobs, transformation_id)
