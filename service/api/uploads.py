"""Multipart forms with many files, and bodies that are one file."""

import tempfile
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO

from fastapi import Depends, Request
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from service.api.dependencies import Name
from service.errors import GalleryError, TooLarge, Unprocessable

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 64 * 2**20
_IN_MEMORY_BYTES = 16 * 2**20


class TooManyFiles(TooLarge):
    """The form has more files than one request may carry."""


class InvalidForm(GalleryError):
    """The body is not a readable multipart form."""


class MissingPart(Unprocessable):
    """A part that is needed is not in the form."""


class InvalidName(Unprocessable):
    """A text part is to be a name and is not one."""


async def read_upload_form(request: Request) -> AsyncIterator[FormData]:
    """Give the request's form; large files are on disk, and gone when the request ends."""
    max_files: int = request.app.state.parts.settings.max_files_per_request
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidForm("The body is a form: Content-Type multipart/form-data.")
    try:
        form = await request.form(max_files=max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except HTTPException as error:
        if "Too many files" in error.detail:
            raise TooManyFiles(f"A request carries at most {max_files} files.") from error
        raise InvalidForm(f"The form cannot be read: {error.detail}") from error
    try:
        yield form
    finally:
        await form.close()


async def spooled_body(request: Request) -> AsyncIterator[BinaryIO]:
    """Give the body, in memory, or on disk when it is large: Parquet is read from its end."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as body:
        async for block in request.stream():
            await run_in_threadpool(body.write, block)
        body.seek(0)
        yield body  # type: ignore[misc]  # a spooled file is a BinaryIO in all but name


UploadForm = Annotated[FormData, Depends(read_upload_form)]


def text_part(form: FormData, name: str) -> str:
    """Return a text part, or raise `MissingPart` (422)."""
    values = form.getlist(name)
    if len(values) != 1 or not isinstance(values[0], str):
        raise MissingPart(f"The form has one text part named {name!r}.")
    return values[0]


def name_part(form: FormData, name: str) -> str:
    """Return a text part that is a name, or raise `MissingPart` or `InvalidName` (422)."""
    try:
        return _NAME.validate_python(text_part(form, name))
    except ValidationError as error:
        raise InvalidName(f"The part {name!r} is not a name: {error.errors()[0]['msg']}.") from error


def file_part(form: FormData, name: str) -> bytes:
    """Return a file part's bytes, or raise `MissingPart` (422)."""
    data = optional_file_part(form, name)
    if data is None:
        raise MissingPart(f"The form has one file named {name!r}.")
    return data


def optional_file_part(form: FormData, name: str) -> bytes | None:
    """Return a file part's bytes, or None when the form has no such part."""
    file = optional_open_part(form, name)
    if file is None:
        return None
    file.seek(0)
    return file.read()


def optional_open_part(form: FormData, name: str) -> BinaryIO | None:
    """Return a file part to be read, or None when the form has no such part."""
    values = form.getlist(name)
    if not values:
        return None
    if len(values) != 1 or not isinstance(values[0], UploadFile):
        raise MissingPart(f"The form has one file named {name!r}.")
    return values[0].file


def refuse_other_parts(form: FormData, names: set[str]) -> None:
    """Raise `MissingPart` (422) when the form has parts that mean nothing here: a misspelt name is not ignored."""
    others = sorted(set(form) - names)
    if others:
        raise MissingPart(f"The form has parts that are not known: {', '.join(others)}.")
