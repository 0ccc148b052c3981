"""Forms whose files lie in one temporary file: each reads as a file of its own."""

import asyncio
import io
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from service.api.spooled_form import SpooledForm


def body_of(files: list[bytes]) -> bytes:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d"\r\n\r\n' % number + data + b"\r\n"
        for number, data in enumerate(files)
    ]
    return b"".join(parts) + b'--x\r\nContent-Disposition: form-data; name="said"\r\n\r\ntext\r\n--x--\r\n'


def parser_of(body: bytes, block: int) -> SpooledForm:
    blocks = [body[start : start + block] for start in range(0, len(body), block)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": blocks.pop(0) if blocks else b"", "more_body": bool(blocks)}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    return SpooledForm(request, max_files=100, max_fields=10, max_text_bytes=1000)


@pytest.mark.parametrize(("size", "block"), [(1_000, 7), (1_000, 100_000), (3_000_000, 65_536), (3_000_000, 10**9)])
def test_each_file_is_read_as_it_was_sent(size: int, block: int) -> None:
    files = [os.urandom(size), b"", os.urandom(size), b"small", os.urandom(7 * size)]
    parser = parser_of(body_of(files), block)

    form = asyncio.run(parser.parse())

    uploads = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
    assert [(file.filename, file.size) for file in uploads] == [(str(n), len(data)) for n, data in enumerate(files)]
    for file, data in [*zip(uploads, files, strict=True), *reversed(list(zip(uploads, files, strict=True)))]:
        file.file.seek(0)
        assert file.file.read() == data
    assert form["said"] == "text"
    parser.close()


def test_a_file_of_a_form_can_be_read_as_parquet() -> None:
    stream = io.BytesIO()
    table = pa.table({"id": ["a", "b"]})
    pq.write_table(table, stream)
    parser = parser_of(body_of([b"before", stream.getvalue(), b"after"]), 1_000)

    form = asyncio.run(parser.parse())

    file = form.getlist("files")[1]
    assert isinstance(file, UploadFile)
    assert pq.read_table(file.file).equals(table)
    parser.close()


def test_a_broken_form_is_forgotten() -> None:
    parser = parser_of(body_of([b"x"])[:-20].replace(b"\r\n\r\n", b"\r\n", 1), 1_000)

    with pytest.raises(MultiPartException):
        asyncio.run(parser.parse())

    with pytest.raises(ValueError, match="closed"):
        parser._spool.read()
