"""Building a sealed index, and its file: what FAISS writes, and behind it the copies of a graph's rows
(`service.index.copies`) where there are any.

`save_index` takes the steps of `write_atomically`, each with the crash point after it: 1. write under a temporary name
in the same folder (`index.written`); 2. fsync (`index.synced`); 3. rename (`index.renamed`); 4. fsync the folder
(`index.published`, which the caller passes).
A crash after 1 or 2 leaves a `.part` file; after 3, the whole file, which is not named in any row until its digest is.
Every build has a name of its own. So a file never changes once it has its name, and processes that have an older file
mapped keep that. What is left is removed by `service.domain.indexes.index_files`, or by the next build of the name.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from service.crash_points import crash_point
from service.durable import Step, file_sha256, write_atomically
from service.index.copies import Copies, Grouping, append_copies, map_copies
from service.index.faiss_index import FaissIndex
from service.index.kinds import BuiltIndex, empty_index, faiss_metric
from service.index.protocol import Ids, IndexKind, Metric, Vectors, normalized


class IndexFileError(RuntimeError):
    """The file is not the index that was saved."""


def build_index(
    metric: Metric,
    dim: int,
    rows: Iterable[tuple[Ids, Vectors]],
    kind: IndexKind,
    training: Vectors | None = None,
) -> BuiltIndex:
    """Build a sealed index of streamed (ids (N,), vectors (N, dim) float32).

    `training` is (T, dim), as many of the rows as `service.index.kinds.training_rows` says, drawn from all of them;
    without it, an index of lists has a single list.
    """
    started = time.monotonic()
    learnt_from = np.empty((0, dim), np.float32) if training is None else _prepared(metric, training)
    mapped = faiss.IndexIDMap(empty_index(kind, metric, dim, learnt_from))
    grouping = Grouping(mapped) if kind == "hnsw" else None
    for ids, vectors in rows:
        if grouping is not None:
            grouping.add(ids, _prepared(metric, vectors))
        else:
            mapped.add_with_ids(_prepared(metric, vectors), ids)
    copies = Copies.none() if grouping is None else grouping.copies()
    return BuiltIndex(mapped, time.monotonic() - started, copies)


def save_index(built: BuiltIndex, path: Path) -> str:
    """Write the index to `path` in one step, and return the file's SHA-256."""
    for left in path.parent.glob(f"{path.name}.*.part"):
        left.unlink(missing_ok=True)  # of a build of this name that died
    digest = ""

    def after(step: Step, file: Path) -> None:
        nonlocal digest
        match step:
            case "written":  # 1.
                crash_point("index.written")
            case "synced":  # 2.
                digest = file_sha256(file)
                crash_point("index.synced")
            case "renamed":  # 3.
                crash_point("index.renamed")

    def write(part: Path) -> None:
        faiss.write_index(built.index, str(part))
        append_copies(part, built.copies)

    write_atomically(path, write, after)  # 1. to 4.
    return digest


def load_index(path: Path, metric: Metric, dim: int, sha256: str, device: str = "cpu") -> FaissIndex:
    """Map a saved index into memory, to be searched as wide as when it was saved. Raises `IndexFileError`."""
    try:
        return FaissIndex(metric, dim, read_index(path, metric, dim, sha256), device)
    except ValueError as error:
        raise IndexFileError(f"The index file {path.name} is of no kind that is searched here.") from error


def read_index(path: Path, metric: Metric, dim: int, sha256: str) -> BuiltIndex:
    """Map a saved index into memory.

    Raises `IndexFileError` unless the file has exactly this digest: FAISS trusts what it reads, so that nothing is read
    before it is known.
    """
    if file_sha256(path) != sha256:
        raise IndexFileError(f"The index file {path.name} is damaged or of another build.")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexFileError(f"This FAISS cannot read the index file {path.name}.") from error
    if (index.d, index.metric_type) != (dim, faiss_metric(metric)):
        raise IndexFileError(f"The index file {path.name} is not one of {dim} dimensions and metric {metric}.")
    try:
        return BuiltIndex(index, copies=map_copies(path))
    except ValueError as error:
        raise IndexFileError(f"The index file {path.name} is of another version of the service: {error}") from error


def _prepared(metric: Metric, vectors: Vectors) -> Vectors:
    return np.ascontiguousarray(normalized(vectors) if metric == "cosine" else vectors, np.float32)
