"""One request of the API, before it is sent: what it asks, and how its body is written."""

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from gallery_upgrade.core.names import printable

T = TypeVar("T")


class Unset(Enum):
    """The type of `UNSET`: a parameter that was not given, and is not sent. None is sent as null."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class File:
    """A file of a form: its name, and its bytes or where they are read from when it is sent."""

    name: str
    content: bytes | Path


Json: TypeAlias = Mapping[str, Any] | Sequence[Any] | str
Upload: TypeAlias = File | Path | bytes
Uploads: TypeAlias = Upload | Sequence[Upload]


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request whose answer is a `T`. `answers` names the model of each status, or None for bytes or nothing; with
    `text` an answer may be a text too.

    There is one body at most: `content` if it is given, else the form if one of `files` is given, else `body`, else the
    form of its texts.
    """

    method: str
    path: str
    answers: Mapping[int, str | None]
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    body: Any = UNSET
    form: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Uploads | Unset] = field(default_factory=dict)
    content: Upload | Unset = UNSET
    content_type: str = ""
    text: bool = False
    # The same over all tries: whoever sends the request again is answered what the first one did.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


class StreamCall(Call[T]):
    """A request whose answer is read while it comes."""


def quoted(value: object) -> str:
    """Return a value as one segment of a path."""
    return quote(str(value), safe="")


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given of these parameters."""
    return {name: value for name, value in values.items() if value is not UNSET}


def written(call: Call[Any], opened: ExitStack) -> dict[str, Any]:
    """Return the arguments of `httpx.Client.build_request` for a call; files that it reads are closed by `opened`.

    Raises OSError where a file cannot be read.
    """
    headers = {name: str(value) for name, value in _said(call.headers).items()}
    query = _said(call.query)
    request: dict[str, Any] = {"method": call.method, "url": call.path, "headers": headers}
    if call.method == "POST":
        headers["Idempotency-Key"] = call.key

    files = given(call.files)
    if not isinstance(call.content, Unset):
        request["content"] = _bytes(call.content)
        headers["Content-Type"] = call.content_type
    elif files:
        query = {name: value for name, value in query.items() if name not in call.form}  # said once
        request["data"] = {name: _text(value) for name, value in _said(call.form).items()}
        request["files"] = [(part, _part(upload, opened)) for part, all_ in files.items() for upload in _each(all_)]
    elif call.body is not UNSET:
        request["json"] = call.body
    elif texts := _said(call.form):  # a form without its files is one of parts all the same
        query = {name: value for name, value in query.items() if name not in call.form}
        request["files"] = [(name, (None, _text(value))) for name, value in texts.items()]
    request["params"] = {name: _text(value) for name, value in query.items()}
    return request


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given of parameters of which null has no form."""
    return {name: value for name, value in given(values).items() if value is not None}


def _text(value: Any) -> Any:
    """Return a value as a form or a query has it: texts as they are, a list of texts as several, else JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(entry, str) for entry in value):
        return list(value)
    return json.dumps(value)


def _each(uploads: Uploads) -> Sequence[Upload]:
    if isinstance(uploads, File | Path | bytes):
        return [uploads]
    return uploads


def _part(upload: Upload, opened: ExitStack) -> tuple[str, bytes | IO[bytes]]:
    if isinstance(upload, bytes):
        return "file", upload
    name, content = (upload.name, upload.content) if isinstance(upload, File) else (upload.name, upload)
    return printable(name), content if isinstance(content, bytes) else opened.enter_context(content.open("rb"))


def _bytes(upload: Upload) -> bytes:
    content = upload.content if isinstance(upload, File) else upload
    return content if isinstance(content, bytes) else content.read_bytes()
