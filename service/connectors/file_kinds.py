"""Files of vectors as galleries: Parquet (a file or a folder of them), .npy and FAISS with ids beside.

A kind gives its keys and vectors by the rows' places in the file, and writes a file of its own kind with other vectors.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.connectors.store import StoreRefused, Vectors
from service.errors import GalleryError
from service.vectors.arrow import read_vectors

Places = NDArray[np.int64]
# Gives the new (N, D) embeddings and (N, S) side-information of keys.
Made = Callable[[list[str]], tuple[Vectors, Vectors | None]]
_BATCH_ROWS = 8_192


class FileKind(Protocol):
    """What a file holds, as it was when it was opened; `path` is what is switched. `keys` are in the file's order, and
    numbers if `are_numbers`."""

    path: Path
    are_numbers: bool
    embedding_dim: int
    side_information_dim: int | None
    metric: str | None
    dtype: str
    warning: str | None

    @property
    def keys(self) -> list[str]: ...

    def take(self, places: Places) -> tuple[Vectors, Vectors | None]:
        """Return the vectors of ascending places. Raises `StoreRefused`."""

    def payloads(self, places: Places) -> list[dict[str, Any]]:
        """Return what else the file says of ascending places, empty where nothing."""

    def write(self, to: Path, made: Made) -> None:
        """Write a file like this one with other vectors of the same keys."""


def open_file(path: Path, columns: dict[str, str], named: Path | None = None) -> FileKind:
    """Return what is at a path. `columns` names a table's: key, embedding and perhaps side_information; `named` is the
    path whose ending says what it is, and beside which its ids are, if that is another.

    Raises `StoreRefused` for what cannot be read.
    """
    named = named or path
    try:
        if path.is_dir() or named.suffix == ".parquet":
            return Tables(path, columns)
        if named.suffix == ".npy":
            return Array(path, named)
        if named.suffix in (".faiss", ".index"):
            return FaissFile(path, named)
    except FileNotFoundError as error:
        raise StoreRefused(
            f"There is no {Path(str(error.filename)).name!r}, which the gallery's files need."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pa.ArrowException) as error:
        raise StoreRefused(f"{path.name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
    raise StoreRefused(f"{path.name} is neither a folder of Parquet files nor .parquet, .npy, .faiss or .index.")


class Tables:
    """Parquet. Other columns are kept as they are."""

    metric: str | None = None
    warning: str | None = None

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        self.path = path
        self._files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self._files:
            raise StoreRefused(f"{path.name} has no Parquet files.")
        schema = pq.read_schema(self._files[0])
        self._key, self._embedding = columns.get("key", "id"), columns.get("embedding", "embedding")
        self._side = columns.get("side_information")
        if self._side is None and "side_information" in schema.names:
            self._side = "side_information"
        for name in filter(None, (self._key, self._embedding, self._side)):
            if name not in schema.names:
                raise StoreRefused(f"{self._files[0].name} has no column {name!r}; it has {', '.join(schema.names)}.")
        self._kind = schema.field(self._embedding).type
        self.dtype = "float16" if self._kind.value_type == pa.float16() else "float32"
        self.are_numbers = pa.types.is_integer(schema.field(self._key).type)
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, place of its first row
        rows = 0
        for file in self._files:
            meta = pq.read_metadata(file)
            for group in range(meta.num_row_groups):
                self._groups.append((file, group, rows))
                rows += meta.row_group(group).num_rows
        self._rows = rows
        self._last: tuple[tuple[Path, int], pa.Table] | None = None  # a group of which the next range has rows too
        self.embedding_dim = self._dim(schema, self._embedding)
        self.side_information_dim = None if self._side is None else self._dim(schema, self._side)

    def _dim(self, schema: pa.Schema, name: str) -> int:
        kind = schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for file, group, _ in self._groups:
            table = pq.ParquetFile(file).read_row_group(group, columns=[name]).slice(0, 1)
            if table.num_rows:
                return int(_vectors(table, name, None).shape[1])
        raise StoreRefused(f"The column {name!r} says no dimension, and has no rows that would.")

    @cached_property
    def keys(self) -> list[str]:
        found: list[str] = []
        for file in self._files:
            column = pq.read_table(file, columns=[self._key])[self._key]
            if column.null_count:
                raise StoreRefused(f"{file.name} has rows without {self._key!r}.")
            found += column.to_pylist() if not self.are_numbers else map(str, column.to_pylist())
        return found

    def payloads(self, places: Places) -> list[dict[str, Any]]:
        """Return the columns that are no lists of numbers."""
        rows: list[dict[str, Any]] = []
        for file, group, first, found in self._groups_of(places):
            source = pq.ParquetFile(file)
            fields = (field for field in source.schema_arrow if field.name != self._key)
            names = [field.name for field in fields if not _is_list(field.type)]
            if names:
                rows += source.read_row_group(group, columns=names).take(places[found] - first).to_pylist()
            else:
                rows += [{} for _ in places[found]]
        return rows

    def _groups_of(self, places: Places) -> Iterator[tuple[Path, int, int, slice]]:
        """Give the row groups that have some of ascending places: file, group, the place of its first row, and which of
        the places it has."""
        ends = [first for _, _, first in self._groups[1:]] + [self._rows]
        for (file, group, first), end in zip(self._groups, ends, strict=False):
            found = slice(*np.searchsorted(places, [first, end]))
            if found.start != found.stop:
                yield file, group, first, found

    def take(self, places: Places) -> tuple[Vectors, Vectors | None]:
        embedding = np.empty((len(places), self.embedding_dim), np.float32)
        side = None
        if self.side_information_dim is not None:
            side = np.empty((len(places), self.side_information_dim), np.float32)
        for file, group, first, found in self._groups_of(places):
            names = [name for name in (self._embedding, self._side) if name is not None]
            if self._last is None or self._last[0] != (file, group):
                self._last = ((file, group), pq.ParquetFile(file).read_row_group(group, columns=names))
            table = self._last[1].take(places[found] - first)
            embedding[found] = _vectors(table, self._embedding, self.embedding_dim)
            if side is not None and self._side is not None:
                side[found] = _vectors(table, self._side, self.side_information_dim)
        return embedding, side

    def write(self, to: Path, made: Made) -> None:
        if self.path.is_dir():
            to.mkdir()
        for file in self._files:
            self._write_file(file, to / file.name if self.path.is_dir() else to, made)

    def _write_file(self, file: Path, to: Path, made: Made) -> None:
        writer = None
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(_BATCH_ROWS):
                table = self._replaced(pa.Table.from_batches([batch]), made)
                writer = writer or pq.ParquetWriter(to, table.schema)
                writer.write_table(table)
            if writer is None:
                table = self._replaced(source.schema_arrow.empty_table(), made)
                writer = pq.ParquetWriter(to, table.schema)
        writer.close()

    def _replaced(self, table: pa.Table, made: Made) -> pa.Table:
        embedding, side = made([str(key) for key in table[self._key].to_pylist()])
        place = table.column_names.index(self._embedding)
        table = table.set_column(place, self._embedding, self._column(embedding))
        name = self._side or "side_information"
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.remove_column(place)
        return table if side is None else table.append_column(name, self._column(side))

    def _column(self, vectors: Vectors) -> pa.Array:
        """Return vectors as lists of the kind that the embedding's are."""
        number = self._kind.value_type
        flat = pa.array(vectors.reshape(-1).astype(number.to_pandas_dtype()), number)
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return column if pa.types.is_fixed_size_list(self._kind) else column.cast(pa.list_(number))


class Array:
    """A .npy of (N, D) floats, with `NAME.ids.txt` beside, one id a line, and perhaps `NAME.side_information.npy`."""

    metric: str | None = None
    warning: str | None = None
    are_numbers = False

    def __init__(self, path: Path, named: Path) -> None:
        self.path = path
        self._vectors = _load(path)
        self.dtype = "float16" if self._vectors.dtype == np.float16 else "float32"
        self.embedding_dim = int(self._vectors.shape[1])
        self.keys = _ids_beside(named, len(self._vectors))
        beside = named.with_suffix(".side_information.npy")
        self._side = _load(beside) if beside.exists() else None
        if self._side is not None and len(self._side) != len(self.keys):
            raise StoreRefused(f"{beside.name} has another number of rows than {path.name}.")
        self.side_information_dim = None if self._side is None else int(self._side.shape[1])

    def payloads(self, places: Places) -> list[dict[str, Any]]:
        return [{} for _ in places]

    def take(self, places: Places) -> tuple[Vectors, Vectors | None]:
        side = None if self._side is None else self._side[places].astype(np.float32)
        return self._vectors[places].astype(np.float32), side

    def write(self, to: Path, made: Made) -> None:
        dim = made([])[0].shape[1]
        if made([])[1] is not None:
            raise StoreRefused("The side information of a .npy is a file of its own, which is not switched with it.")
        out = np.lib.format.open_memmap(to, "w+", self._vectors.dtype, (len(self.keys), dim))
        for start in range(0, len(self.keys), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            out[part] = made(self.keys[part])[0]
        out.flush()


class FaissFile:
    """A FAISS index with `NAME.ids.txt` beside it, or with numbers of its own. The new one is flat, but for HNSW over
    flat vectors, which is built with as many links."""

    dtype = "float32"
    side_information_dim: int | None = None

    def __init__(self, path: Path, named: Path) -> None:
        import faiss

        self.path = path
        self._whole = faiss.read_index(str(path))  # it owns what is inside
        self._is_numbered = isinstance(self._whole, faiss.IndexIDMap)
        self._index = faiss.downcast_index(self._whole.index) if self._is_numbered else self._whole
        if isinstance(self._index, faiss.IndexIVF):
            self._index.make_direct_map()
        self.embedding_dim = int(self._index.d)
        self.metric = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}.get(self._index.metric_type)
        self.are_numbers = self._is_numbered and not named.with_suffix(".ids.txt").exists()
        if self.are_numbers:
            self.keys = [str(number) for number in faiss.vector_to_array(self._whole.id_map)]
        else:
            self.keys = _ids_beside(named, self._index.ntotal)
        kind = type(self._index).__name__
        self.warning: str | None = None
        if not isinstance(self._index, faiss.IndexFlat | faiss.IndexHNSWFlat):
            self.warning = (
                f"A {kind} may hold codes in place of vectors: what is transformed is what the codes stand for. The new"
                " index is flat; build one of the same kind from it where it is too large."
            )

    def payloads(self, places: Places) -> list[dict[str, Any]]:
        return [{} for _ in places]

    def take(self, places: Places) -> tuple[Vectors, Vectors | None]:
        if len(places) == 0:
            return np.empty((0, self.embedding_dim), np.float32), None
        found: Vectors = self._index.reconstruct_batch(places)
        return found, None

    def write(self, to: Path, made: Made) -> None:
        import faiss

        dim, metric = made([])[0].shape[1], self._index.metric_type
        index = faiss.IndexFlat(dim, metric)
        if isinstance(self._index, faiss.IndexHNSWFlat):
            index = faiss.IndexHNSWFlat(dim, self._index.hnsw.nb_neighbors(1), metric)
            index.hnsw.efConstruction = self._index.hnsw.efConstruction
        out = type(self._whole)(index) if self._is_numbered else index
        numbers = faiss.vector_to_array(self._whole.id_map) if self._is_numbered else None
        for start in range(0, len(self.keys), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            vectors = made(self.keys[part])[0]
            out.add(vectors) if numbers is None else out.add_with_ids(vectors, numbers[part])
        faiss.write_index(out, str(to))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _load(path: Path) -> NDArray[Any]:
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.ndim != 2 or found.dtype not in (np.float16, np.float32, np.float64):
        raise StoreRefused(f"{path.name} has the shape {found.shape} of {found.dtype}; vectors are (N, D) floats.")
    return found


def _ids_beside(path: Path, rows: int) -> list[str]:
    ids = path.with_suffix(".ids.txt").read_text(encoding="utf-8").split("\n")
    if ids and ids[-1] == "":
        ids.pop()
    if len(ids) != rows:
        raise StoreRefused(f"{path.name} has {rows} rows, but there are {len(ids)} ids.")
    return ids


def _vectors(table: pa.Table, name: str, dim: int | None) -> Vectors:
    try:
        return read_vectors(table, name, dim)
    except GalleryError as error:
        raise StoreRefused(error.message) from error


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_in(path: Path) -> Iterator[Path]:
    """Give a file, or the files of a folder."""
    yield from sorted(path.iterdir()) if path.is_dir() else [path]
