"""Reading exports of a gallery, and tables to import."""

import io
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq


def table_of(answer: httpx.Response) -> pa.Table:
    """Return the table of an answer of either format."""
    assert answer.status_code == 200, answer.text
    return read(answer.content)


def read(content: bytes) -> pa.Table:
    if content.startswith(b"PAR1"):
        return pq.read_table(io.BytesIO(content))
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()


def export(client: httpx.Client, gallery: str = "g", **parameters: Any) -> pa.Table:
    return table_of(client.get(f"/v1/galleries/{gallery}/embeddings", params=parameters))


def stream_of(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def import_table(client: httpx.Client, table: pa.Table, gallery: str = "g") -> httpx.Response:
    return client.post(f"/v1/galleries/{gallery}/embeddings", content=stream_of(table))
