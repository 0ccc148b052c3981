"""Building a sealed index, and its file.

`save_index`, in order, each step with the crash point after it: 1. write under a temporary name in the same folder
(`index.written`); 2. fsync (`index.synced`); 3. rename (`index.renamed`); 4. fsync the folder (`index.published`, which
the caller passes).
A crash after 1 or 2 leaves a `.part` file, which the next build of the same name overwrites; after 3, the whole file,
which is not named in any row until its digest is. A file is never changed once it has its name: the next one replaces
it, and processes that have the old one mapped keep it.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from service.crash_points import crash_point
from service.folders import sync_folder
from service.index.faiss_index import BuiltIndex, FaissIndex
from service.index.protocol import Ids, Metric, Vectors, exact_distances, nearest, normalized

_HNSW_LINKS = 32
_HNSW_EF_CONSTRUCTION = 80
_DIGEST_BLOCK_BYTES = 2**22
_TIE_SHARE = 1e-5  # distances this close, relatively, differ by float32's rounding alone


class IndexFileError(RuntimeError):
    """The file is not the index that was saved."""


def build_index(
    metric: Metric,
    dim: int,
    rows: Iterable[tuple[Ids, Vectors]],
    kind: Literal["flat", "hnsw"],
) -> BuiltIndex:
    """Build a sealed index of streamed (ids (N,), vectors (N, dim) float32)."""
    started = time.monotonic()
    parameters: dict[str, object] = {}
    if kind == "flat":
        index = faiss.IndexFlat(dim, _faiss_metric(metric))
    else:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, _HNSW_LINKS, _faiss_metric(metric))
        index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        parameters = {"links": _HNSW_LINKS, "ef_construction": _HNSW_EF_CONSTRUCTION, "codes": "float16"}
    mapped = faiss.IndexIDMap(index)
    for ids, vectors in rows:
        values = np.ascontiguousarray(normalized(vectors) if metric == "cosine" else vectors, np.float32)
        if not index.is_trained:
            index.train(values)  # float16 codes learn nothing; FAISS asks for the call
        mapped.add_with_ids(values, ids)
    return BuiltIndex(mapped, kind, parameters, time.monotonic() - started)


def save_index(built: BuiltIndex, path: Path) -> str:
    """Write the index to `path` in one step, and return the file's SHA-256."""
    part = path.with_name(path.name + ".part")
    faiss.write_index(built.index, str(part))
    crash_point("index.written")
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    digest = _sha256(part)
    crash_point("index.synced")
    part.rename(path)
    crash_point("index.renamed")
    sync_folder(path.parent)
    return digest


def load_index(path: Path, metric: Metric, dim: int, sha256: str) -> FaissIndex:
    """Map a saved index into memory. Raises `IndexFileError` unless the file has exactly this digest.

    FAISS trusts what it reads, so nothing is read before the digest is right.
    """
    if _sha256(path) != sha256:
        raise IndexFileError(f"The index file {path.name} is damaged or of another build.")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexFileError(f"This FAISS cannot read the index file {path.name}.") from error
    if (index.d, index.metric_type) != (dim, _faiss_metric(metric)):
        raise IndexFileError(f"The index file {path.name} is not one of {dim} dimensions and metric {metric}.")
    kind = "flat" if isinstance(faiss.downcast_index(index.index), faiss.IndexFlat) else "hnsw"
    return FaissIndex(metric, dim, BuiltIndex(index, kind))


def measure_recall(
    index: FaissIndex, metric: Metric, queries: Vectors, rows: Iterable[tuple[Ids, Vectors]], k: int = 10
) -> float:
    """Return the share of the true k nearest of (Q, D) queries that the index finds; `rows` are all that it holds.

    What counts is the distance: of ten copies of one image, any is as good as another.
    """
    prepared = normalized(queries) if metric == "cosine" else queries
    found = index.search(queries, k).ids
    found_distances = np.full(found.shape, np.inf, np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    true = np.empty((len(queries), 0), np.float32)
    for block_ids, vectors in rows:
        if len(block_ids) == 0:
            continue
        block = exact_distances(metric, prepared, normalized(vectors) if metric == "cosine" else vectors)
        order = np.argsort(block_ids)
        columns = order[np.minimum(np.searchsorted(block_ids, found, sorter=order), len(order) - 1)]
        here = block_ids[columns] == found
        found_distances[here] = np.take_along_axis(block, columns, axis=1)[here]
        best = nearest(np.hstack([ids, np.broadcast_to(block_ids, block.shape)]), np.hstack([true, block]), k)
        ids, true = best.ids, best.distances
    last = np.max(true, axis=1, where=np.isfinite(true), initial=-np.inf)[:, None]
    hits = np.isfinite(found_distances) & (found_distances <= last + _TIE_SHARE * np.abs(last))
    return float(hits.sum() / max(1, np.isfinite(true).sum()))


def _faiss_metric(metric: Metric) -> int:
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_DIGEST_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
