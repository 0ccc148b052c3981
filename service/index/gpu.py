"""Sealed indexes on an NVIDIA GPU, with the wheel `faiss-gpu` (the extra `gpu`).

| kind | on the GPU | on the CPU |
|---|---|---|
| flat | searches without a filter, while there are no tombstones | the others: FAISS's GPU scans take no selector |
| ivf, ivf_sq8 | every approximate search, with a filter too: it looks wider | exact scans with a filter or tombstones |
| hnsw | | everything: FAISS has no graphs on a GPU |

A search for more than 2,048 neighbours, or in more than 2,048 lists, is on the CPU too: it is FAISS's limit on a GPU.
What goes on the CPU goes to the index that the file holds, which stays mapped beside the GPU's copy. FAISS's GPU
resources are not safe for concurrent use, so searches of all copies, and copying itself, take turns.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import faiss

from service.index.copies import Scored
from service.index.kinds import FlatRows, ListRows, Rows
from service.index.protocol import Vectors

_MOST_NEIGHBOURS = 2048  # of one search, and lists probed: FAISS's limits on a GPU
_turn = threading.Lock()


class _Copy:
    """An index's copy on the device, searched when nothing else uses that."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def search(self, queries: Vectors, k: int, parameters: Any = None) -> Scored:
        with _turn:
            scores, found = self._index.search(queries, k, params=parameters)
        return scores, found


class GpuFlatRows(FlatRows):
    """Flat rows whose scans of every row run on the device."""

    def __init__(self, rows: Rows, copy: Any) -> None:
        super().__init__(rows.index, rows.owner)
        self._copy = _Copy(copy)

    def scan(self, queries: Vectors, k: int, selector: Any) -> Scored:
        if selector is not None or k > _MOST_NEIGHBOURS:
            return super().scan(queries, k, selector)
        return self._copy.search(queries, k)


class GpuListRows(ListRows):
    """Lists that are searched on the device."""

    def __init__(self, rows: Rows, copy: Any) -> None:
        super().__init__(rows.index, rows.owner)
        self._copy = _Copy(copy)

    def _probe(self, queries: Vectors, k: int, *, nprobe: int, sel: Any) -> Scored:
        if sel is not None or max(k, nprobe) > _MOST_NEIGHBOURS:
            return super()._probe(queries, k, nprobe=nprobe, sel=sel)
        return self._copy.search(queries, k, faiss.SearchParametersIVF(nprobe=nprobe))


def rows_on(device: str, rows: Rows) -> Rows:
    """Return rows that are searched on a device, which is named as torch does; the same rows if FAISS cannot use it."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or faiss.get_num_gpus() == 0:
        return rows

    def copied(index: Any) -> Any:
        with _turn:
            return faiss.index_cpu_to_gpu(_resources(), int(number or 0), index)

    return with_copy(rows, copied)


def with_copy(rows: Rows, copy: Callable[[Any], Any]) -> Rows:
    """Return rows that are searched in a copy of their FAISS index; the same rows if their kind has none there."""
    if isinstance(rows, FlatRows):
        return GpuFlatRows(rows, copy(rows.index))
    if isinstance(rows, ListRows):
        return GpuListRows(rows, copy(rows.index))
    return rows


@lru_cache(maxsize=1)
def _resources() -> Any:
    return faiss.StandardGpuResources()
