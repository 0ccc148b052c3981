"""The kinds of sealed index. What differs between them is here: how each is made, searched, and recognised in a file.

| kind | bytes of a vector of D numbers | a search compares a query with |
|---|---|---|
| flat | 4 D | every row |
| hnsw | 2 D + about 270 (its links) | the rows that a walk through a graph of near rows meets |
| ivf | 2 D + 16 (its list, and where in it) | the rows of the lists whose centres are nearest |
| ivf_sq8 | D + 16 | the same |

Graphs: Malkov and Yashunin, arXiv 1603.09320. Lists: Sivic and Zisserman, ICCV 2003; their codes are of a row's
difference from its list's centre, float16, or 8 bits over the range that a training sample has in each dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from service.index.copies import Copies, Scored
from service.index.protocol import Ids, IndexKind, Metric, Vectors

_LINKS = 32
_EF_CONSTRUCTION = 80
_EF_SEARCH = [64, 96, 128, 192, 256, 384, 512, 768, 1024]

_ROWS_PER_LIST = 64  # of the training sample
_LISTS_PER_ROOT = 4  # n rows get 4 √n lists; fewer where the training sample is bounded
_SAMPLE_BYTES = 2**28
_FEWEST_LISTS_PROBED = 8  # whatever the sample says: queries need not be like the rows
_ROWS_PER_NEIGHBOUR = 32  # a search compares at least so many for each row that it is to return
_MEASURED_NEIGHBOURS = 10  # a width is chosen for so many


def bytes_per_row(kind: IndexKind, dim: int) -> int:
    """Return about how much memory a vector of `dim` numbers takes in a sealed index of this kind."""
    return {"flat": 4 * dim, "hnsw": 2 * dim + 270, "ivf": 2 * dim + 16, "ivf_sq8": dim + 16}[kind]


class Rows(ABC):
    """The rows of a FAISS index that `owner` owns, or of a graph its nodes. A row is a position: how many were added
    before it."""

    kind: IndexKind

    def __init__(self, index: Any, owner: Any) -> None:
        self.index = index
        self.owner = owner

    @property
    def parameters(self) -> dict[str, Any]:
        """What is recorded of the index, for people."""
        return {}

    def vectors(self, positions: NDArray[np.int64]) -> Vectors:
        """Return (N, D) float32 vectors, as the codes have them."""
        found: Vectors = self.index.reconstruct_batch(positions)
        return found

    @abstractmethod
    def scan(self, queries: Vectors, k: int, selector: Any) -> Scored:
        """Return the k nearest of the rows that the selector lets pass (None: of all), exactly by their codes."""


class ApproximateRows(Rows):
    """Rows of which a search compares only some: the more, the greater its width. The file keeps the width."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The width that was chosen."""

    @width.setter
    @abstractmethod
    def width(self, width: int) -> None: ...

    @property
    @abstractmethod
    def widths(self) -> list[int]:
        """The widths to choose from by measurement, narrowest first."""

    @abstractmethod
    def width_for(self, count: int) -> int:
        """Return at what width `count` nearest rows are found as well as ten at the index's own."""

    @abstractmethod
    def rows_compared(self, width: int) -> int:
        """Return about how many distances a search computes; as many as there are rows when it finds every one."""

    @abstractmethod
    def search(self, queries: Vectors, k: int, width: int) -> Scored:
        """Return the k nearest of all rows, or nearly."""


class FlatRows(Rows):
    kind = "flat"

    def scan(self, queries: Vectors, k: int, selector: Any) -> Scored:
        scores, found = self.index.search(queries, k, params=faiss.SearchParameters(sel=selector))
        return scores, found


class GraphRows(ApproximateRows):
    """`width` is efSearch: how many of the rows seen a walk keeps."""

    kind = "hnsw"

    def __init__(self, index: Any, owner: Any) -> None:
        super().__init__(index, owner)
        self._codes = FlatRows(faiss.downcast_index(index.storage), owner)

    @property
    def width(self) -> int:
        return max(_EF_SEARCH[0], int(self.index.hnsw.efSearch))

    @width.setter
    def width(self, width: int) -> None:
        self.index.hnsw.efSearch = width

    @property
    def widths(self) -> list[int]:
        return _EF_SEARCH

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "links": self.index.hnsw.nb_neighbors(1),
            "ef_construction": self.index.hnsw.efConstruction,
            "ef_search": self.width,
            "codes": "float16",
        }

    def width_for(self, count: int) -> int:
        return max(self.width, 2 * count)

    def rows_compared(self, width: int) -> int:
        return width * _LINKS

    def search(self, queries: Vectors, k: int, width: int) -> Scored:
        scores, found = self.index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=width))
        return scores, found

    def scan(self, queries: Vectors, k: int, selector: Any) -> Scored:
        return self._codes.scan(queries, k, selector)


class ListRows(ApproximateRows):
    """`width` is nprobe: in how many lists a search looks."""

    def __init__(self, index: Any, owner: Any) -> None:
        super().__init__(index, owner)
        self.kind = "ivf_sq8" if index.sq.qtype == faiss.ScalarQuantizer.QT_8bit else "ivf"

    @property
    def width(self) -> int:
        return int(self.index.nprobe)

    @width.setter
    def width(self, width: int) -> None:
        self.index.nprobe = width

    @property
    def widths(self) -> list[int]:
        lists, widths, step = int(self.index.nlist), set[int](), _FEWEST_LISTS_PROBED
        while step < lists:
            widths |= {step, step * 3 // 2}
            step *= 2
        return [*sorted(width for width in widths if width < lists), lists]

    @property
    def parameters(self) -> dict[str, Any]:
        codes = "8 bits" if self.kind == "ivf_sq8" else "float16"
        return {"lists": self.index.nlist, "nprobe": self.width, "codes": codes}

    def width_for(self, count: int) -> int:
        """Return the larger of two widths, both measured on clustered and on smooth rows: the number of lists grows
        with the root of the number of neighbours; past the end of a cluster, each neighbour takes a number of rows."""
        lists = int(self.index.nlist)
        by_root = self.width * math.sqrt(max(1, count / _MEASURED_NEIGHBOURS))
        by_rows = _ROWS_PER_NEIGHBOUR * count * lists / max(1, int(self.index.ntotal))
        return min(lists, math.ceil(max(by_root, by_rows)))

    def rows_compared(self, width: int) -> int:
        lists = int(self.index.nlist)
        return lists + math.ceil(width * int(self.index.ntotal) / lists)

    def search(self, queries: Vectors, k: int, width: int) -> Scored:
        return self._probe(queries, k, nprobe=width, sel=None)

    def scan(self, queries: Vectors, k: int, selector: Any) -> Scored:
        return self._probe(queries, k, nprobe=self.index.nlist, sel=selector)

    def _probe(self, queries: Vectors, k: int, *, nprobe: int, sel: Any) -> Scored:
        scores, found = self.index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=nprobe, sel=sel))
        return scores, found


@dataclass(frozen=True)
class BuiltIndex:
    """A sealed FAISS index: an IDMap of one of the kinds, and the copies that a graph has no nodes for. `seconds` is
    what building took; 0 for one from a file."""

    index: Any
    seconds: float = 0.0
    copies: Copies = field(default_factory=Copies.none)

    @property
    def rows(self) -> Rows:
        """What FAISS has, as positions. Raises ValueError for a FAISS index of no kind that is known here."""
        inner = faiss.downcast_index(self.index.index)
        for type_, rows in _ROWS_OF.items():
            if isinstance(inner, type_):
                return rows(inner, self.index)
        raise ValueError(f"{type(inner).__name__} is no kind of index that is searched here.")

    def __len__(self) -> int:
        return int(self.index.ntotal) + len(self.copies)

    @property
    def ids(self) -> Ids:
        """The id of each position: a copy of (N,)."""
        own: Ids = faiss.vector_to_array(self.index.id_map)
        return np.concatenate([own, self.copies.ids]) if len(self.copies) else own

    @property
    def parameters(self) -> dict[str, Any]:
        """What is recorded of the index, for people."""
        copies = {"copies": len(self.copies)} if len(self.copies) else {}
        return {**self.rows.parameters, **copies}

    def vectors(self, positions: NDArray[np.int64]) -> Vectors:
        """Return (N, D) float32 vectors, as the codes have them."""
        return self.rows.vectors(self.copies.nodes_of(positions, self.index.ntotal))

    def all_rows(self, known: Iterable[tuple[Ids, Vectors]], chunk: int) -> Iterator[tuple[Ids, Vectors]]:
        """Yield every row that is here once, as (n,) ids and (n, D) vectors: first those that `known` has, with its
        vectors; then the others in chunks, with the vectors of their codes."""
        own = self.ids
        if len(own) == 0:
            return
        order = np.argsort(own)
        is_known = np.zeros(len(own), bool)
        for ids, vectors in known:
            places = order[np.minimum(np.searchsorted(own, ids, sorter=order), len(own) - 1)]
            here = own[places] == ids
            is_known[places[here]] = True
            yield ids[here], vectors[here]
        others = np.flatnonzero(~is_known)
        for start in range(0, len(others), chunk):
            part = others[start : start + chunk]
            yield own[part], self.vectors(part)


_ROWS_OF: dict[Any, type[Rows]] = {
    faiss.IndexFlat: FlatRows,
    faiss.IndexHNSWSQ: GraphRows,
    faiss.IndexIVFScalarQuantizer: ListRows,
}


def training_rows(kind: IndexKind, dim: int, count: int) -> int:
    """Return how many of `count` rows to draw for `empty_index` to learn from, 256 MiB of float32 at most; 0 for kinds
    that learn nothing."""
    if kind in ("flat", "hnsw"):
        return 0
    wanted = math.ceil(_ROWS_PER_LIST * _LISTS_PER_ROOT * math.sqrt(count))
    return min(count, wanted, _SAMPLE_BYTES // (4 * dim))


def empty_index(kind: IndexKind, metric: Metric, dim: int, training: Vectors) -> Any:
    """Return a FAISS index that rows can be added to. `training` is (N, D), drawn from all rows to come: lists get
    their centres and 8-bit codes their ranges from it."""
    if kind == "flat":
        return faiss.IndexFlat(dim, faiss_metric(metric))
    if kind == "hnsw":
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, _LINKS, faiss_metric(metric))
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
        graph.train(np.zeros((1, dim), np.float32))  # float16 codes learn nothing; FAISS asks for the call
        return graph

    centres = faiss.IndexFlat(dim, faiss_metric(metric))
    codes = faiss.ScalarQuantizer.QT_fp16 if kind == "ivf" else faiss.ScalarQuantizer.QT_8bit
    lists = max(1, len(training) // _ROWS_PER_LIST)
    index = faiss.IndexIVFScalarQuantizer(centres, dim, lists, codes, faiss_metric(metric), True)
    index.cp.min_points_per_centroid = 1  # FAISS would warn on stderr
    index.train(training if len(training) else np.zeros((1, dim), np.float32))
    index.nprobe = ListRows(index, index).widths[0]
    index.set_direct_map_type(faiss.DirectMap.Array)  # without it, no row's vector can be read
    return index


def faiss_metric(metric: Metric) -> int:
    """Return FAISS's constant; cosine is the inner product of normalised vectors."""
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
