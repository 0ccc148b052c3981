"""Multipart forms of thousands of files, all kept in one temporary file; a file is also known by its `filename*`.

Starlette gives every file of a form a temporary file of its own, in memory up to a megabyte: thousands of photographs
would take gigabytes, or thousands of file handles.
"""

import io
import tempfile
from typing import Any, BinaryIO, cast

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.api.file_names import plain_disposition
from service.errors import GalleryError, TooLarge

_IN_MEMORY_BYTES = 16 * 2**20
_CHARSETS = ("utf-8", "ascii", "iso8859-1")


class TooMuchText(TooLarge):
    """The text of a form is more than one request may bring."""


class Form(FormData):
    """A form, of which one part that is text, or all of them together, has at most `max_text_bytes`."""

    def __init__(self, parts: FormData, max_text_bytes: int) -> None:
        super().__init__(parts)
        self.max_text_bytes = max_text_bytes


class SpooledForm(MultiPartParser):
    """Reads one form. Its files can be read until `close` is called."""

    def __init__(self, request: Request, *, max_files: int, max_fields: int, max_text_bytes: int) -> None:
        limits: dict[str, Any] = {"max_files": max_files, "max_fields": max_fields, "max_part_size": max_text_bytes}
        super().__init__(request.headers, cast("Any", request.stream()), **limits)
        self._max_text_bytes = max_text_bytes
        self._text_bytes = 0
        self._spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - until `close`

    def on_headers_finished(self) -> None:
        if self._charset not in _CHARSETS:  # others make text of bytes that no row can hold, or fail as they like
            raise MultiPartException(f"its charset is to be one of {', '.join(_CHARSETS)}.")
        part = self._current_part
        if part.content_disposition is not None:
            part.content_disposition = plain_disposition(part.content_disposition)
        super().on_headers_finished()
        file = self._current_part.file
        if file is not None:
            file.file.close()
            file.file = cast("BinaryIO", _Part(cast("BinaryIO", self._spool)))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text_bytes += end - start
            if self._text_bytes > self._max_text_bytes:
                raise TooMuchText(f"The parts of a form that are text have at most {self._max_text_bytes} bytes.")
        super().on_part_data(data, start, end)

    async def parse(self) -> Form:
        """Return the form. Raises `MultiPartException` and `TooMuchText` (413)."""
        whole = False
        try:
            form = await super().parse()
            whole = True
        except (MultiPartException, GalleryError, HTTPException, ClientDisconnect, OSError):
            raise
        except Exception as error:  # a damaged form may make the parser raise anything
            raise MultiPartException(str(error)) from error
        finally:
            if not whole:
                self.close()
        return Form(form, self._max_text_bytes)

    def close(self) -> None:
        """Forget the files."""
        self._spool.close()


class _Part(io.RawIOBase):
    """One file of a form. Files come one after another, so what is written lies together at the spool's end."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._start = 0
        self._length = 0
        self._position = 0

    @property
    def _rolled(self) -> bool:
        """Whether the bytes are on a disk: Starlette leaves the event loop for these only."""
        rolled: bool = self._spool._rolled  # type: ignore[attr-defined]  # of a SpooledTemporaryFile
        return rolled

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        end = self._spool.seek(0, io.SEEK_END)
        if self._length == 0:
            self._start = end  # the file before may still have been on its way when this one's headers were read
        written = self._spool.write(data)
        self._length += written
        self._position = self._length
        return written

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._length - self._position)
        if wanted <= 0:
            return 0
        self._spool.seek(self._start + self._position)
        data = self._spool.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position
