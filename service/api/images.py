"""`POST /v1/galleries/{g}/images`: ingest of image files."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import NamePath, PartsDependency
from service.api.file_names import readable_name
from service.api.json_bodies import Body, parse_json
from service.api.refusals import refusals
from service.api.spooled_form import Form
from service.api.uploads import UploadForm, text_part
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.images import ImageUpload, NoImageAccepted, UpgradesTooBusy, ingest_images
from service.domain.gallery.new_items import InvalidItem, NewItem
from service.errors import Unprocessable
from service.networks.decoded_bytes import ImagesTooBusy
from service.networks.encoders import ArtifactUnusable, EncodingFailed, EncodingStopped, VersionWithoutNetworks
from service.networks.images import InvalidImage

router = APIRouter(prefix="/galleries", tags=["images"])

Description = TypeVar("Description")


class InvalidUpload(Unprocessable):
    """The form's parts do not fit together."""


# What endpoints that encode images of a form may refuse for.
OF_IMAGES = (
    InvalidUpload,
    InvalidItem,
    InvalidImage,
    ImagesTooBusy,
    EncodingFailed,
    EncodingStopped,
    ArtifactUnusable,
    VersionWithoutNetworks,
)


class ItemDescription(Body):
    """What is said about one file; `id` defaults to the file's name."""

    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None
    image_uri: str | None = None


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


_OF_ITEMS = DescriptionsForm("items", "{id?, metadata?, label?, image_uri?}", TypeAdapter(list[ItemDescription]))
_FORM = body_of(
    form_of(
        {
            "files": {"type": "array", "items": FILE},
            "items": {
                "type": "string",
                "description": "JSON list of {id?, metadata?, label?, image_uri?}, one per file in file order",
            },
        },
        required=["files"],
    )
)


@router.post(
    "/{name}/images",
    openapi_extra=_FORM,
    responses=refusals(UnknownGallery, NoImageAccepted, UpgradesTooBusy, Unprocessable, *OF_IMAGES),
)
def post_images(name: NamePath, form: UploadForm, parts: PartsDependency) -> ImagesAnswer:
    """Encode and store images. One bad file is rejected alone; 422 only if every file is."""
    uploads = image_uploads(form, parts.settings.max_image_bytes)
    parts.quotas.take_images(len(uploads))
    results = ingest_images(parts.writer, name, uploads)
    return ImagesAnswer(results=[ImageResultView(id=r.id, status=r.status, error=r.error) for r in results])


def image_uploads(form: Form, max_image_bytes: int) -> list[ImageUpload]:
    """Return the form's files with what is said of them. Raises `InvalidUpload` (422)."""
    files = [value for key, value in form.multi_items() if key == "files" and isinstance(value, UploadFile)]
    others = {key for key in form if key not in ("files", "items")}
    if not files or others:
        raise InvalidUpload("The form has one or more parts named 'files', each a file, and optionally 'items'.")
    texts = form.getlist("items")
    if len(texts) > 1:
        raise InvalidUpload("The part 'items' occurs once.")
    descriptions = read_descriptions(form, _OF_ITEMS, len(files)) if texts else [ItemDescription() for _ in files]
    return [
        ImageUpload(
            NewItem(
                id_of(description.id, file, "items"), description.metadata, description.label, description.image_uri
            ),
            partial(read_file, file, max_image_bytes),
        )
        for description, file in zip(descriptions, files, strict=True)
    ]


def read_descriptions(form: Form, wanted: DescriptionsForm[Description], count: int) -> list[Description]:
    """Return what the one part that describes files says of so many, in their order. Raises `MissingPart`,
    `InvalidUpload` and `NotJson` (422)."""
    name = wanted.part
    values = parse_json(text_part(form, name), f"The part {name!r}")
    try:
        descriptions = wanted.adapter.validate_python(values)
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"location": [name, *e["loc"]], "detail": e["msg"]} for e in error.errors()[:100]
        ]
        raise InvalidUpload(f"The part {name!r} is not a list of {wanted.shape}.", errors) from error
    if len(descriptions) != count:
        raise InvalidUpload(f"{name!r} describes {len(descriptions)} files, but there are {count}.")
    return descriptions


def id_of(given: str | None, file: UploadFile, part: str) -> str:
    """Return the id that was given for a file, or else its name. Raises `InvalidUpload` (422) without either."""
    name = given if given is not None else readable_name(file.filename or "")
    if not name:
        raise InvalidUpload(f"A file without a name needs an 'id' in {part!r}.")
    return name


def read_file(file: UploadFile, max_image_bytes: int) -> bytes:
    """Return the file's bytes from the start; one byte too many is enough to refuse it as too large."""
    file.file.seek(0)
    return file.file.read(max_image_bytes + 1)
