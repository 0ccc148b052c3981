"""Copies: rows that a graph cannot tell from one that it has.

A walk that meets many copies of one vector ("no image", a black frame) sees nothing else: their links lead to each
other, and what lies behind them is not found. So a graph has one *node* for all rows of equal float16 codes. The node's
own row is that of the smallest id; the others are kept beside the graph, and put into answers again when a search is
over. Whether a row takes part in a search (filters, tombstones) is each row's own matter, never its group's.

A row is a position: first the nodes' own, in the order of the graph, then the copies.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from service.index.protocol import NO_ID, Ids, Vectors

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
Scored = tuple[Vectors, Positions]  # FAISS's own (Q, k) scores, and positions, padded with -1

# What ends a file with copies: a mark, the version of what precedes it, and the number of copies.
_FOOTER = struct.Struct("<8sQQ")
_MARK = b"COPIES\r\n"
_VERSION = 1
_ALIGNED_TO = 8


@dataclass(frozen=True)
class Copies:
    """(M,) int64 `ids` of copies, and the `nodes` that stand for them; ordered by node, and of one node by id."""

    ids: Ids
    nodes: Positions

    @classmethod
    def none(cls) -> "Copies":
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def nodes_of(self, positions: Positions, node_count: int) -> Positions:
        """Return the node of each row."""
        if len(self) == 0:
            return positions
        return np.where(positions < node_count, positions, self.nodes[np.maximum(positions - node_count, 0)])

    def largest(self, most: int, fewest_rows: int) -> Positions:
        """Return the nodes that stand for the most rows, `most` at most, each for `fewest_rows` or more."""
        nodes, counts = np.unique(self.nodes, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        largest: Positions = nodes[order[counts[order] + 1 >= fewest_rows]]
        return largest


class Grouping:
    """Finds the copies among rows that are added to a graph, by the hash of their codes, 40 bytes of memory a node."""

    def __init__(self, mapped: Any) -> None:
        """`mapped` is the IDMap over the empty graph."""
        self._mapped = mapped
        self._storage = faiss.downcast_index(mapped.index).storage
        self._node_of_hash = faiss.MapLong2Long()
        self._ids: list[Ids] = []
        self._nodes: list[Positions] = []

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (n,) ids with (n, D) float32 vectors: those that are no copies to the graph."""
        if len(ids) == 0:
            return
        codes = self._storage.sa_encode(vectors)  # (n, bytes) uint8
        hashes = _hashes(codes)
        distinct, first, of = np.unique(hashes, return_index=True, return_inverse=True)
        leaders = first[of]  # the first row of this call with the same hash
        nodes = self._node_of_hash.search_multiple(distinct)[of]  # of an earlier call; else -1

        is_copy = self._has_code_of(codes, leaders, nodes)
        numbers = int(self._mapped.ntotal) + np.cumsum(~is_copy) - 1
        is_new = nodes[first] == NO_ID
        self._node_of_hash.add(distinct[is_new], numbers[first[is_new]])
        self._mapped.add_with_ids(vectors[~is_copy], ids[~is_copy])
        self._ids.append(ids[is_copy])
        self._nodes.append(np.where(nodes == NO_ID, numbers[leaders], nodes)[is_copy])

    def copies(self) -> Copies:
        """Return the copies of all that was added, when each node has the smallest id of its group."""
        if not self._ids:
            return Copies.none()
        ids, nodes = np.concatenate(self._ids), np.concatenate(self._nodes)
        if len(ids) == 0:
            return Copies.none()
        own: Ids = faiss.vector_to_array(self._mapped.id_map)
        grouped = np.unique(nodes)
        ids, nodes = np.concatenate([own[grouped], ids]), np.concatenate([grouped, nodes])
        order = np.lexsort((ids, nodes))
        ids, nodes = ids[order], nodes[order]
        is_first = np.append(True, nodes[1:] != nodes[:-1])
        own[nodes[is_first]] = ids[is_first]
        faiss.copy_array_to_vector(own, self._mapped.id_map)
        return Copies(ids[~is_first], nodes[~is_first])

    def _has_code_of(self, codes: NDArray[np.uint8], leaders: Positions, nodes: Positions) -> Mask:
        """Return which rows have the code of their node, or without one of their leader: a hash alone may be shared."""
        is_copy = np.zeros(len(codes), bool)
        of_node = np.flatnonzero(nodes != NO_ID)
        if len(of_node):
            node_codes = self._storage.sa_encode(self._storage.reconstruct_batch(nodes[of_node]))
            is_copy[of_node] = (codes[of_node] == node_codes).all(axis=1)
        of_leader = np.flatnonzero((nodes == NO_ID) & (leaders != np.arange(len(codes))))
        is_copy[of_leader] = (codes[of_leader] == codes[leaders[of_leader]]).all(axis=1)
        return is_copy


def _hashes(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    whole = np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1])))[:, 0]
    return np.fromiter(map(hash, whole.tolist()), np.int64, len(codes))


@dataclass(frozen=True)
class Members:
    """The rows that take part in a search: `rows` (N,) of which there are `count`, and `nodes` (n,), those that stand
    for any of them; of the copies among them their positions and nodes, by node and id."""

    rows: Mask
    count: int
    nodes: Mask
    node_count: int
    copy_rows: Positions
    copy_nodes: Positions

    @classmethod
    def of(cls, rows: Mask, count: int, copies: Copies) -> "Members":
        if len(copies) == 0:
            return cls(rows, count, rows, count, copies.ids, copies.nodes)
        own = len(rows) - len(copies)
        here = np.flatnonzero(rows[own:])
        nodes = rows[:own].copy()
        copy_nodes = copies.nodes[here]
        nodes[copy_nodes] = True
        return cls(rows, count, nodes, int(np.count_nonzero(nodes)), own + here, copy_nodes)

    def expanded(self, scores: Vectors, nodes: Positions, k: int) -> Scored:
        """Return the first k rows of (Q, F) nodes, F >= k, which are among those that take part, nearest first: of each
        node by id."""
        if len(self.copy_nodes) == 0:
            return scores, nodes
        queries, width = nodes.shape
        found = nodes.ravel()
        is_own = (found != NO_ID) & self.rows[found]
        first = np.searchsorted(self.copy_nodes, found)
        counts = np.searchsorted(self.copy_nodes, found, side="right") - first
        if not counts.any():
            return scores, nodes

        wanted = (is_own + counts).reshape(nodes.shape)
        before = np.minimum(np.cumsum(wanted, axis=1) - wanted, k)
        taken = np.minimum(wanted, k - before).ravel()  # rows of each node

        places = np.repeat(np.arange(queries * width), taken)  # of (Q, F), that of each row's node
        within = np.arange(len(places)) - np.repeat(np.cumsum(taken) - taken, taken)
        of_copy = first[places] + within - is_own[places]
        is_node_itself = is_own[places] & (within == 0)
        rows = np.where(is_node_itself, found[places], self.copy_rows[np.where(is_node_itself, 0, of_copy)])

        columns = before.ravel()[places] + within
        expanded = np.full((queries, k), NO_ID, np.int64)
        expanded_scores = np.zeros((queries, k), np.float32)
        expanded[places // width, columns] = rows
        expanded_scores[places // width, columns] = scores.ravel()[places]
        return expanded_scores, expanded


def append_copies(path: Path, copies: Copies) -> None:
    """Write copies behind the FAISS index in a file; nothing where there are none."""
    if len(copies) == 0:
        return
    with path.open("ab") as file:
        file.write(b"\0" * (-file.tell() % _ALIGNED_TO))
        file.write(copies.nodes.astype("<i8").tobytes())
        file.write(copies.ids.astype("<i8").tobytes())
        file.write(_FOOTER.pack(_MARK, _VERSION, len(copies)))


def map_copies(path: Path) -> Copies:
    """Map the copies that a file has behind its FAISS index. Raises ValueError for those of another version."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER.size:
            return Copies.none()
        file.seek(size - _FOOTER.size)
        mark, version, count = _FOOTER.unpack(file.read())
    if mark != _MARK:
        return Copies.none()
    if version != _VERSION:
        raise ValueError(f"Its copies are of version {version}, and this service reads version {_VERSION}.")
    start = size - _FOOTER.size - 2 * 8 * count
    nodes, ids = np.memmap(path, "<i8", "r", start, (2, count))
    return Copies(ids, nodes)
