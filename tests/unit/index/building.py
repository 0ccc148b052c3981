"""Rows, and indexes of them of every kind, built as `service.domain.indexes.builds` does: a sample first, then rows."""

from typing import get_args

import numpy as np

from service.index.files import build_index
from service.index.kinds import BuiltIndex, training_rows
from service.index.protocol import Ids, IndexKind, Metric, Vectors
from service.index.recall import Sample, choose_width

KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
APPROXIMATE_KINDS = tuple(kind for kind in KINDS if kind != "flat")
Rows = dict[int, Vectors]

# What rounding to the codes costs in distance, relative to the largest one.
CODES: dict[IndexKind, float] = {"flat": 1e-5, "hnsw": 2e-3, "ivf": 2e-3, "ivf_sq8": 3e-2}


def some_vectors(rows: int, dim: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def some_ids(rows: int, seed: int = 1) -> Ids:
    """Return unique ids in no order, from all over the range of a bigint key."""
    return np.unique(np.random.default_rng(seed).integers(0, 2**62, rows + 9))[:rows][::-1].copy()


def as_rows(ids: Ids, vectors: Vectors) -> Rows:
    return dict(zip(ids.tolist(), vectors, strict=True))


def built(metric: Metric, ids: Ids, vectors: Vectors, kind: IndexKind = "flat", chunk: int = 1_000) -> BuiltIndex:
    """Build an index of (N,) ids and (N, D) vectors that come in chunks, at its narrowest width."""
    dim = vectors.shape[1]
    count = training_rows(kind, dim, len(ids))
    training = vectors[np.random.default_rng(0).choice(len(ids), count, replace=False)]
    parts = ((ids[at : at + chunk], vectors[at : at + chunk]) for at in range(0, len(ids), chunk))
    return build_index(metric, dim, parts, kind, training)


def built_and_measured(metric: Metric, ids: Ids, vectors: Vectors, kind: IndexKind) -> tuple[BuiltIndex, float]:
    """Build an index, choose its width by 100 of its rows, and return it with its recall."""
    index = built(metric, ids, vectors, kind)
    sample = np.random.default_rng(1).permutation(len(ids))[:100]
    return index, choose_width(index, metric, Sample(ids[sample], vectors[sample]), [(ids, vectors)]).recall_at_10
