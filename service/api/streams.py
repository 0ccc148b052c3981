"""Answers that are streamed from the database: the connection is given back whatever becomes of the client."""

from anyio import CancelScope, fail_after
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from service import logs
from service.domain.gallery.exports import Export
from service.vectors.table_streams import TableFormat

_MEDIA_TYPES: dict[TableFormat, str] = {
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}

events = logs.Events(__name__)


class ExportResponse(StreamingResponse):
    """An export's table. When the client goes away, or takes nothing for a time, it ends without its last chunk, by
    which the client can tell."""

    def __init__(self, export: Export, format_: TableFormat, stalled_after_seconds: float) -> None:
        headers = {
            "Gallery-Generation": str(export.generation),
            "Gallery-Model-Version": export.model_version,
            "Gallery-Revision": str(export.revision),
            "Gallery-Rows": str(export.rows),
        }
        if export.next_cursor is not None:
            headers["Next-Cursor"] = export.next_cursor
        super().__init__(iter(export), headers=headers, media_type=_MEDIA_TYPES[format_])
        self._export = export
        self._stalled_after_seconds = stalled_after_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                with fail_after(self._stalled_after_seconds):
                    await send(message)
            except TimeoutError:
                events.warning("export.stalled", generation_id=self._export.generation)
                raise

        try:
            await super().__call__(scope, receive, send_in_time)
        except (TimeoutError, ClientDisconnect):
            return  # the server sees that the answer is not whole, and closes the connection
        finally:
            with CancelScope(shield=True):
                await run_in_threadpool(self._export.close)
