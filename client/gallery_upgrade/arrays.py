"""Vectors in and out, as Arrow tables and as files of other galleries."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gallery_upgrade.api.operation import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"


class _Readable(io.RawIOBase):
    """The body of an answer as a file that Arrow can read."""

    def __init__(self, body: Bytes) -> None:
        self._parts = iter(body)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = memoryview(part)
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


def arrow_batches(body: Bytes) -> "Iterator[pa.RecordBatch]":
    """Give the batches of an Arrow IPC stream while it comes."""
    import pyarrow as pa

    with pa.ipc.open_stream(io.BufferedReader(_Readable(body))) as reader:
        yield from reader


def arrow_stream(table: "pa.Table") -> bytes:
    """Return a table as an Arrow IPC stream."""
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def vectors_table(
    ids: "list[str]", embedding: "NDArray[np.floating[Any]]", side_information: "NDArray[np.floating[Any]] | None"
) -> "pa.Table":
    """Return a table to import: ids (N,), embedding (N, D) and perhaps side_information (N, S), float16 or float32."""
    import pyarrow as pa

    columns: dict[str, Any] = {"id": pa.array(ids, pa.string()), "embedding": _column(embedding)}
    if side_information is not None:
        columns["side_information"] = _column(side_information)
    return pa.table(columns)


def _column(vectors: "NDArray[np.floating[Any]]") -> "pa.FixedSizeListArray":
    import numpy as np
    import pyarrow as pa

    flat = np.ascontiguousarray(vectors).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])


def dimension_of(table: "pa.Table", name: str) -> int:
    """Return how many numbers the first vector of a column has."""
    import pyarrow as pa

    kind = table[name].type
    return int(kind.list_size if pa.types.is_fixed_size_list(kind) else len(table[name][0].as_py()))


def read_vectors(path: Path, rows: int) -> "Iterator[pa.Table]":
    """Give tables of at most so many rows of a gallery that lives in files, to be imported one by one.

    `path` is a Parquet file or a folder of them with the columns of an import; an Arrow IPC file or stream; a .npy of
    (N, D) vectors or a FAISS index with ids beside it (`NAME.ids.txt`, one a line; an index may have numbers of its
    own instead); or a folder of clip-retrieval, `img_emb/*.npy` with `metadata/*.parquet`, whose ids are the column
    image_path. Raises FileNotFoundError and ValueError.
    """
    if path.is_dir() and (path / "img_emb").is_dir():
        yield from _clip_retrieval(path, rows)
    elif path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"{path} has neither Parquet files nor clip-retrieval's img_emb and metadata.")
        for file in files:
            yield from _parquet(file, rows)
    elif path.suffix == ".parquet":
        yield from _parquet(path, rows)
    elif path.suffix in (".arrow", ".arrows", ".feather"):
        yield from _arrow(path, rows)
    elif path.suffix == ".npy":
        yield from _array(path, rows)
    elif path.suffix in (".faiss", ".index"):
        yield from _faiss(path, rows)
    else:
        raise ValueError(f"{path.name} is neither Parquet, Arrow, .npy, FAISS, nor a folder of them.")


def _parquet(path: Path, rows: int) -> "Iterator[pa.Table]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows):
            yield pa.Table.from_batches([batch])


def _arrow(path: Path, rows: int) -> "Iterator[pa.Table]":
    import pyarrow as pa

    with path.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    with pa.memory_map(str(path)) as source:
        table = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)


def _array(path: Path, rows: int) -> "Iterator[pa.Table]":
    import numpy as np

    vectors = np.load(path, mmap_mode="r")
    if vectors.ndim != 2:
        raise ValueError(f"{path.name} has the shape {vectors.shape}; vectors are rows: (N, D).")
    ids = _ids_beside(path, len(vectors))
    for start in range(0, len(ids), rows):
        yield vectors_table(ids[start : start + rows], vectors[start : start + rows], None)


def _faiss(path: Path, rows: int) -> "Iterator[pa.Table]":
    """Give what an index holds: of a quantised one, what its codes stand for."""
    import faiss

    try:
        whole = faiss.read_index(str(path))  # it owns what is inside
        has_numbers = isinstance(whole, faiss.IndexIDMap)
        index = faiss.downcast_index(whole.index) if has_numbers else whole
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map()
        if has_numbers and not path.with_suffix(".ids.txt").exists():
            ids = [str(number) for number in faiss.vector_to_array(whole.id_map)]
        else:
            ids = _ids_beside(path, index.ntotal)
        for start in range(0, index.ntotal, rows):
            some = min(rows, index.ntotal - start)
            yield vectors_table(ids[start : start + some], index.reconstruct_n(start, some), None)
    except RuntimeError as error:  # of FAISS: no index, or one that keeps no vectors
        raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error


def _ids_beside(path: Path, rows: int) -> list[str]:
    beside = path.with_suffix(".ids.txt")
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is needed beside {path.name}: the ids of its rows, one a line.")
    ids = beside.read_text().splitlines()
    if len(ids) != rows:
        raise ValueError(f"{path.name} has {rows} rows, but there are {len(ids)} ids.")
    return ids


def _clip_retrieval(path: Path, rows: int) -> "Iterator[pa.Table]":
    import numpy as np
    import pyarrow.parquet as pq

    for part in sorted((path / "img_emb").glob("*.npy")):
        beside = path / "metadata" / f"{part.stem.replace('img_emb', 'metadata')}.parquet"
        ids = [str(name) for name in pq.read_table(beside, columns=["image_path"])["image_path"].to_pylist()]
        vectors = np.load(part, mmap_mode="r")
        if len(vectors) != len(ids):
            raise ValueError(f"{part.name} has {len(vectors)} rows, but {beside.name} has {len(ids)}.")
        for start in range(0, len(ids), rows):
            yield vectors_table(ids[start : start + rows], vectors[start : start + rows], None)
