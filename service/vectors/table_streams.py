"""Tables on their way out: rows of a generation as Arrow record batches, and batches as the bytes of an Arrow IPC
stream or of a Parquet file, one block after the other."""

import io
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.vectors.rows import EmbeddingRows, Origin, VectorFormat

TableFormat = Literal["arrow", "parquet"]

# What a batch says of itself in the stream's custom metadata, beside what the schema's says of the table.
CURSOR_KEY = "cursor"
_ORIGINS = pa.array(["", *(origin.label for origin in Origin)])  # by number
_REPEATED = ["origin", "label"]  # the columns whose values are worth a dictionary in Parquet


class TableStream(Protocol):
    """Takes batches of one schema and gives bytes: all blocks, and then that of `finish`, are the table."""

    def block(self, batch: pa.RecordBatch, cursor: str) -> bytes: ...

    def finish(self) -> bytes: ...


def table_schema(vector_format: VectorFormat, metadata: dict[str, str]) -> pa.Schema:
    """Return the columns of an exported table; `embedding` and `side_information` have the stored dtype."""
    value = pa.float16() if vector_format.dtype == "float16" else pa.float32()
    fields = [pa.field("id", pa.string(), nullable=False)]
    for name, dim in (
        ("embedding", vector_format.embedding_dim),
        ("side_information", vector_format.side_information_dim),
    ):
        if dim is not None:
            fields.append(pa.field(name, pa.list_(value, dim), nullable=False))
    fields += [
        pa.field("origin", pa.string(), nullable=False),
        pa.field("hops", pa.int16(), nullable=False),
        pa.field("uncertainty", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),
    ]
    return pa.schema(fields, metadata)


def read_texts(csv: bytes) -> pa.Table:
    """Return the columns id, label, metadata and image_uri of rows that PostgreSQL copied out as CSV: what is empty and
    without quotes is NULL."""
    names = ["id", "label", "metadata", "image_uri"]
    return pyarrow.csv.read_csv(
        io.BytesIO(csv),
        # One block: a value may be longer than the default, and no value may straddle two.
        read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=len(csv) + 1, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def table_batch(schema: pa.Schema, rows: EmbeddingRows, texts: pa.Table) -> pa.RecordBatch:
    """Return rows and their texts, in the same order, as one batch of the schema.

    `uncertainty` is null where no h made the row, or h does not say.
    """
    said = (rows.origin == Origin.TRANSFORMED) & ~np.isnan(rows.uncertainty)
    columns: dict[str, Any] = {name: texts.column(name).combine_chunks() for name in texts.column_names}
    columns |= {
        "embedding": _vectors(rows.embedding),
        "side_information": None if rows.side_information is None else _vectors(rows.side_information),
        "origin": _ORIGINS.take(pa.array(rows.origin)),
        "hops": pa.array(rows.hops),
        "uncertainty": pa.array(rows.uncertainty, mask=~said),
    }
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def table_stream(format_: TableFormat, schema: pa.Schema) -> TableStream:
    """Return the writer of a format."""
    return _ArrowStream(schema) if format_ == "arrow" else _ParquetStream(schema)


class _Written(io.RawIOBase):
    """What a writer has written since it was last taken."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pending += data
        return len(data)

    def take(self) -> bytes:
        taken, self._pending = bytes(self._pending), bytearray()
        return taken


class _ArrowStream:
    """Each batch carries, in its custom metadata, the cursor that continues after it."""

    def __init__(self, schema: pa.Schema) -> None:
        self._written = _Written()
        self._writer = pa.ipc.new_stream(self._written, schema)

    def block(self, batch: pa.RecordBatch, cursor: str) -> bytes:
        self._writer.write_batch(batch, custom_metadata={CURSOR_KEY: cursor})
        return self._written.take()

    def finish(self) -> bytes:
        self._writer.close()
        return self._written.take()


class _ParquetStream:
    """One row group for each batch."""

    def __init__(self, schema: pa.Schema) -> None:
        self._written = _Written()
        self._writer = pq.ParquetWriter(self._written, schema, use_dictionary=_REPEATED)

    def block(self, batch: pa.RecordBatch, cursor: str) -> bytes:  # noqa: ARG002 - a row group says nothing of itself
        self._writer.write_batch(batch, row_group_size=max(1, len(batch)))
        return self._written.take()

    def finish(self) -> bytes:
        self._writer.close()
        return self._written.take()


def _vectors(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
