"""`POST /v1/galleries/{g}/images`: ingest of image files."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import NamePath, PartsDependency
from service.api.uploads import UploadForm
from service.domain.gallery.images import ImageUpload, ingest_images
from service.domain.gallery.new_items import NewItem
from service.errors import Unprocessable

router = APIRouter(prefix="/galleries", tags=["images"])

Description = TypeVar("Description")


class InvalidUpload(Unprocessable):
    """The form's parts do not fit together."""


class ItemDescription(BaseModel):
    """What is said about one file; `id` defaults to the file's name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None


class ImageResultView(BaseModel):
    id: str
    status: Literal["created", "replaced", "rejected"]
    error: str | None = None


class ImagesAnswer(BaseModel):
    results: list[ImageResultView]


@dataclass(frozen=True)
class DescriptionsForm(Generic[Description]):
    """A part of a form that says something of each file; `shape` is what of each, in words."""

    part: str
    shape: str
    adapter: TypeAdapter[list[Description]]


_OF_ITEMS = DescriptionsForm("items", "{id?, metadata?, label?}", TypeAdapter(list[ItemDescription]))
_FORM = body_of(
    form_of(
        {
            "files": {"type": "array", "items": FILE},
            "items": {
                "type": "string",
                "description": "JSON list of {id?, metadata?, label?}, one per file in file order",
            },
        },
        required=["files"],
    )
)


@router.post("/{name}/images", openapi_extra=_FORM)
def post_images(name: NamePath, form: UploadForm, parts: PartsDependency) -> ImagesAnswer:
    """Encode and store images. One bad file is rejected alone; 422 only if every file is."""
    results = ingest_images(parts.writer, name, image_uploads(form, parts.settings.max_image_bytes))
    return ImagesAnswer(results=[ImageResultView(id=r.id, status=r.status, error=r.error) for r in results])


def image_uploads(form: FormData, max_image_bytes: int) -> list[ImageUpload]:
    """Return the form's files with what is said of them. Raises `InvalidUpload` (422)."""
    files = [value for key, value in form.multi_items() if key == "files" and isinstance(value, UploadFile)]
    others = {key for key in form if key not in ("files", "items")}
    if not files or others:
        raise InvalidUpload("The form has one or more parts named 'files', each a file, and optionally 'items'.")
    texts = form.getlist("items")
    if len(texts) > 1:
        raise InvalidUpload("The part 'items' occurs once.")
    descriptions = read_descriptions(texts[0], _OF_ITEMS, len(files)) if texts else [ItemDescription() for _ in files]
    return [
        ImageUpload(
            NewItem(id_of(description.id, file, "items"), description.metadata, description.label),
            partial(read_file, file, max_image_bytes),
        )
        for description, file in zip(descriptions, files, strict=True)
    ]


def read_descriptions(part: Any, form: DescriptionsForm[Description], count: int) -> list[Description]:
    """Return what a part, text or a file, says of so many files in their order. Raises `InvalidUpload` (422)."""
    try:
        raw = part.file.read() if isinstance(part, UploadFile) else part
        descriptions = form.adapter.validate_python(json.loads(raw))
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"location": [form.part, *e["loc"]], "detail": e["msg"]} for e in error.errors()[:100]
        ]
        raise InvalidUpload(f"The part {form.part!r} is not a list of {form.shape}.", errors) from error
    except (ValueError, RecursionError) as error:
        raise InvalidUpload(f"The part {form.part!r} is not JSON: {error}") from error
    if len(descriptions) != count:
        raise InvalidUpload(f"{form.part!r} describes {len(descriptions)} files, but there are {count}.")
    return descriptions


def id_of(given: str | None, file: UploadFile, part: str) -> str:
    """Return the id that was given for a file, or else its name. Raises `InvalidUpload` (422) without either."""
    name = given if given is not None else file.filename
    if not name:
        raise InvalidUpload(f"A file without a name needs an 'id' in {part!r}.")
    return name


def read_file(file: UploadFile, max_image_bytes: int) -> bytes:
    """Return the file's bytes from the start; one byte too many is enough to refuse it as too large."""
    file.file.seek(0)
    return file.file.read(max_image_bytes + 1)
