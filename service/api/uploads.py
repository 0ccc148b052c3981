"""Multipart forms with many files, and bodies that are one file."""

import tempfile
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, BinaryIO, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from service.api.dependencies import Name
from service.api.json_bodies import parse_json
from service.api.spooled_form import Form, SpooledForm, TooMuchText
from service.errors import GalleryError, TooLarge, Unprocessable
from service.networks.trials import pack

if TYPE_CHECKING:
    from service.settings import Settings

Spec = TypeVar("Spec", bound=BaseModel)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_MAX_FIELDS = 100
_IN_MEMORY_BYTES = 16 * 2**20


class TooManyFiles(TooLarge):
    """The form has more files than one request may carry."""


class InvalidForm(GalleryError):
    """The body is not a readable multipart form."""


class MissingPart(Unprocessable):
    """A part that is needed is not in the form."""


class InvalidSpec(Unprocessable):
    """The part `spec` is not the JSON that it should be."""


class InvalidName(Unprocessable):
    """A text part is to be a name and is not one."""


def is_form(request: Request) -> bool:
    """Whether the body says that it is a multipart form; a media type is the same in capitals (RFC 9110, 8.3.1)."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_upload_form(request: Request) -> AsyncIterator[Form]:
    """Give the request's form; what is large is on disk, and gone when the request ends."""
    settings: Settings = request.app.state.parts.settings
    max_files = settings.max_files_per_request
    if not is_form(request):
        raise InvalidForm("The body is a form: Content-Type multipart/form-data.")
    parser = SpooledForm(request, max_files=max_files, max_fields=_MAX_FIELDS, max_text_bytes=settings.max_json_bytes)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooManyFiles(f"A request carries at most {max_files} files.") from error
        raise InvalidForm(f"The form cannot be read: {error.message}") from error
    try:
        yield form
    finally:
        parser.close()


async def spooled_body(request: Request) -> AsyncIterator[BinaryIO]:
    """Give the body, in memory, or on disk when it is large: Parquet is read from its end."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as body:
        async for block in request.stream():
            await run_in_threadpool(body.write, block)
        body.seek(0)
        yield body  # type: ignore[misc]  # a spooled file is a BinaryIO in all but name


UploadForm = Annotated[Form, Depends(read_upload_form)]


def text_part(form: Form, name: str) -> str:
    """Return a text part, or raise `MissingPart` (422). Clients that give a part a media type often give it a file name
    too, so text that came as a file will do."""
    values = form.getlist(name)
    if len(values) != 1:
        raise MissingPart(f"The form has one text part named {name!r}.")
    return text_of(form, name, values[0])


def flag_part(form: Form, name: str) -> bool:
    """Return a text part that is true or false; false when the form has none. Raises `MissingPart` (422)."""
    text = text_part(form, name) if name in form else "false"
    if text not in ("true", "false"):
        raise MissingPart(f"The part {name!r} is true or false.")
    return text == "true"


def spec_part(form: Form, shape: type[Spec]) -> Spec:
    """Return the JSON of the text part `spec`. Raises `MissingPart`, `InvalidSpec`, which says where, and `NotJson` for
    a key that stands twice, all 422, and `TooManyValues` (413)."""
    text = text_part(form, "spec")
    try:
        found = shape.model_validate_json(text)
        parse_json(text, "The spec")  # pydantic takes the last of equal keys
        return found
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"location": list(e["loc"]), "detail": e["msg"]} for e in error.errors(include_context=False)
        ]
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise InvalidSpec(f"The spec is not valid: {where}", errors) from error


def texts_of(form: Form, but: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return all text parts but some, by name. Raises `MissingPart` (422) for several of one name, and as `text_of`."""
    names = [name for name, _ in form.multi_items() if name not in but]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MissingPart(f"The form has several parts named {', '.join(map(repr, twice))}; give each once.")
    return {name: text_of(form, name, value) for name, value in form.multi_items() if name not in but}


def text_of(form: Form, name: str, value: str | UploadFile) -> str:
    """Return a part that is text, whether it came as such or as a file. Raises `MissingPart` (422) and `TooMuchText`
    (413)."""
    if isinstance(value, str):
        return value
    value.file.seek(0)
    data = value.file.read(form.max_text_bytes + 1)
    if len(data) > form.max_text_bytes:
        raise TooMuchText(f"The part {name!r} has more than {form.max_text_bytes} bytes of text.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MissingPart(f"The part {name!r} is to be text, and is no UTF-8.") from error


def name_part(form: Form, name: str) -> str:
    """Return a text part that is a name, or raise `MissingPart` or `InvalidName` (422)."""
    try:
        return _NAME.validate_python(text_part(form, name))
    except ValidationError as error:
        raise InvalidName(f"The part {name!r} is not a name: {error.errors()[0]['msg']}.") from error


def network_part(form: Form, name: str) -> bytes:
    """Return the artifact of a network that came in one or several files, or raise `MissingPart` or `InvalidArtifact`
    (422)."""
    data = optional_network_part(form, name)
    if data is None:
        raise MissingPart(f"The form has one file named {name!r}, or the several of one network.")
    return data


def optional_network_part(form: Form, name: str) -> bytes | None:
    """Return the artifact of a network that came in one or several files, or None when the form has no such part."""
    parts = form.getlist(name)
    if not parts:
        return None
    files: dict[str, bytes] = {}
    for part in parts:
        if not isinstance(part, UploadFile):
            raise MissingPart(f"The form has one file named {name!r}, or the several of one network.")
        part.file.seek(0)
        files[part.filename or ""] = part.file.read()
    if len(files) < len(parts):
        raise MissingPart(f"The files of {name!r} have names of their own.")
    return pack(files)


def optional_open_part(form: Form, name: str) -> BinaryIO | None:
    """Return a file part to be read, or None when the form has no such part."""
    values = form.getlist(name)
    if not values:
        return None
    if len(values) != 1 or not isinstance(values[0], UploadFile):
        raise MissingPart(f"The form has one file named {name!r}.")
    return values[0].file


def refuse_other_parts(form: Form, names: set[str]) -> None:
    """Raise `MissingPart` (422) when the form has parts that mean nothing here: a misspelt name is not ignored."""
    others = sorted(set(form) - names)
    if others:
        raise MissingPart(f"The form has parts that are not known: {', '.join(others)}.")
