"""`/v1/transformations`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal, Self

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import IdPath, Name, PartsDependency, SessionDependency
from service.api.jobs import JobView, job_view
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.uploads import (
    UploadForm,
    file_part,
    name_part,
    optional_file_part,
    optional_open_part,
    read_upload_form,
    refuse_other_parts,
)
from service.domain import registry
from service.domain.training.trainings import WantedTraining, plan_training
from service.errors import Unprocessable
from service.tables import Task

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


class TrainingOptions(BaseModel):
    """What is not given is as the recipe says. With `chained`, a training from images also learns from what the newest
    transformation from each other version into `from_version` (one with a g, and not one that draws items to classes
    where the task is "instance") gives for them: what a gallery holds that was upgraded by it."""

    model_config = ConfigDict(extra="forbid")

    recipe: Literal["paper", "default"] = "default"
    task: Task = "instance"
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    batch: int | None = Field(default=None, ge=2, le=65_536)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    inner_dim: int | None = Field(default=None, ge=1, le=8_192)
    members: int | None = Field(default=None, ge=1, le=16)
    chained: bool = True

    @model_validator(mode="after")
    def _recipe_knows_the_task(self) -> Self:
        if (self.recipe, self.task) == ("paper", "class"):
            raise ValueError("The paper's recipe knows no classes: task 'class' needs the default recipe.")
        return self


class NewTraining(BaseModel):
    """`dataset` is a path below the folder that the operator set (GALLERY_DATASETS): class folders of images, Parquet
    with columns image and label, or Parquet of paired vectors. It is left out where paired vectors are uploaded."""

    model_config = ConfigDict(extra="forbid")

    from_version: Name
    to_version: Name
    dataset: str | None = Field(default=None, min_length=1, max_length=1_000)
    with_g: bool = False
    options: TrainingOptions = TrainingOptions()


_TEXT = {"type": "string"}
_FORM = body_of(
    form_of(
        {"from_version": _TEXT, "to_version": _TEXT, "h": FILE, "g": FILE},
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


class NotJson(Unprocessable):
    """The body, or a part of it, is to be JSON and is not."""


async def _training(request: Request) -> AsyncIterator[tuple[NewTraining, BinaryIO | None]]:
    """Give what is asked for, and the file of paired vectors if one came: in a form; without one, JSON will do."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        yield _checked(_parsed(await request.body())), None
        return
    async with asynccontextmanager(read_upload_form)(request) as form:
        refuse_other_parts(form, {*NewTraining.model_fields, "pairs"})
        values: dict[str, Any] = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        if "options" in values:
            values["options"] = _parsed(values["options"].encode())
        yield _checked(values), optional_open_part(form, "pairs")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotJson("The body, or the part 'options', is not JSON.") from error


def _checked(values: Any) -> NewTraining:
    try:
        return NewTraining.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in errors]) from error


def _view(details: registry.TransformationDetails) -> TransformationView:
    transformation = details.transformation
    return TransformationView(
        id=transformation.id,
        from_version=details.from_version,
        to_version=details.to_version,
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
        registry.NetworkStore(session, parts.blobs, parts.settings),
        name_part(form, "from_version"),
        name_part(form, "to_version"),
        file_part(form, "h"),
        optional_file_part(form, "g"),
    )
    response.headers["Location"] = f"/v1/transformations/{transformation.id}"
    return _view(registry.describe_transformation(session, transformation))


@router.post("/train", status_code=202, openapi_extra=_TRAINING_BODY)
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
    job = plan_training(registry.NetworkStore(session, parts.blobs, parts.settings), wanted, pairs)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_view(job)


@router.get("")
def list_transformations(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[TransformationView]:
    """Return transformations, oldest first."""
    found = registry.list_transformations(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(details) for details in found], [details.transformation.id for details in found], limit)


@router.get("/{transformation_id}")
def get_transformation(transformation_id: IdPath, session: SessionDependency) -> TransformationView:
    """Return one transformation."""
    transformation = registry.get_transformation(session, transformation_id)
    return _view(registry.describe_transformation(session, transformation))


@router.delete("/{transformation_id}", status_code=204)
def delete_transformation(transformation_id: IdPath, parts: PartsDependency) -> None:
    """Delete a transformation that no upgrade used."""
    registry.remove_transformation(parts.database, parts.blobs, transformation_id)
