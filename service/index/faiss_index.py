"""`FaissIndex`: a sealed FAISS index, a small exact tail, and tombstones, under one reader-writer lock.

The sealed part never changes. A row that is replaced or removed becomes a tombstone, which searches of the sealed part
leave out; a new row goes to the tail. Inside the sealed part a row is a position, so that which rows take part is one
mask, and no search or addition sorts or hashes as many ids as the gallery has. How rows are searched depends on the
kind of the sealed index (`service.index.kinds`), and a graph has one node for all copies of a row
(`service.index.copies`); that a removed or replaced row is not found does not depend on either.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import faiss
import numpy as np
from numpy.typing import NDArray

from service.index.copies import Members, Scored
from service.index.gpu import rows_on
from service.index.kinds import ApproximateRows, BuiltIndex
from service.index.locks import ReadWriteLock
from service.index.protocol import (
    NO_ID,
    Ids,
    Metric,
    SearchResult,
    Vectors,
    exact_distances,
    from_faiss,
    nearest,
    no_rows,
    normalized,
)
from service.index.tail import Tail

# Up to this many rows, or this share of all, fetching and scoring them together beats a scan that skips the others.
_GATHERED_ROWS = 2_000
_GATHERED_SHARE = 0.01
_BLOCK_ROWS = 65_536
# A batch of queries is searched in parts, because whoever adds or removes waits for the end of a part, and those who
# search after them wait too. A part has less than 128,000 numbers: from there on, FAISS computes L2 as
# |q|² - 2qv + |v|², which loses small distances to large norms.
_QUERIES_AT_ONCE = 64
_NUMBERS_AT_ONCE = 120_000


class _Sealed:
    """The rows of a built index, and which of them are live.

    Where only some rows take part, an approximate search looks for more than k rows among all of them and keeps those
    that take part. When k are left, they are right; for a query with fewer, the codes are scanned. FAISS's own way, a
    selector, is not used there: when the query is far from the rows that pass, a walk through a graph returns k wrong
    rows and no sign of it (recall 0.4 for a filter on one label), and the lists near the query hold few that pass.
    """

    def __init__(self, metric: Metric, built: BuiltIndex, device: str) -> None:
        self._metric = metric
        self._rows = rows_on(device, built.rows)
        self._copies = built.copies
        self._ids = built.ids
        own = len(self._ids) - len(built.copies)
        self._lookups = [_Lookup(self._ids[:own], 0)]
        if len(built.copies):
            self._lookups.append(_Lookup(self._ids[own:], own))
        self._live = Members.of(np.ones(len(self._ids), bool), len(self._ids), built.copies)

    @property
    def live_count(self) -> int:
        return self._live.count

    def live_ids(self) -> Ids:
        return self._ids[self._live.rows]

    @property
    def buried_count(self) -> int:
        return len(self._ids) - self.live_count

    def bury(self, ids: Ids) -> None:
        """Make tombstones of those of (N,) ids that are here."""
        live = self._live.rows
        live[self._live_positions(ids)] = False
        self._live = Members.of(live, int(np.count_nonzero(live)), self._copies)

    def search(self, queries: Vectors, k: int, allowed: Ids | None, *, exact: bool) -> SearchResult:
        """Return up to k nearest live rows, among the unique `allowed` ids only when given; with `exact`, after
        comparing them all."""
        if allowed is None:
            among = self._live
        else:
            positions = self._live_positions(allowed)
            rows = np.zeros(len(self._ids), bool)
            rows[positions] = True
            among = Members.of(rows, len(positions), self._copies)
        if among.count <= max(_GATHERED_ROWS, _GATHERED_SHARE * len(among.rows)):
            return self._gather(queries, k, among.rows)
        if exact:
            scores, nodes, is_exact = *self._scan(queries, k, among.nodes), True
        else:
            scores, nodes, is_exact = self._nearest(queries, k, among)
        scores, found = among.expanded(scores, nodes, k)
        distances = from_faiss(self._metric, scores)
        distances[found == NO_ID] = np.inf
        return SearchResult(np.where(found == NO_ID, NO_ID, self._ids[found]), distances, is_exact)

    def _live_positions(self, ids: Ids) -> NDArray[np.int64]:
        positions = np.concatenate([lookup.positions(ids) for lookup in self._lookups])
        live: NDArray[np.int64] = positions[self._live.rows[positions]]
        return live

    def _nearest(self, queries: Vectors, k: int, among: Members) -> tuple[Vectors, NDArray[np.int64], bool]:
        """Return FAISS's (Q, k) scores and positions of the nearest nodes `among` those that take part, and whether
        every one was compared. They are scanned where an approximate search would compare as many."""
        rows, count = self._rows, among.node_count
        if isinstance(rows, ApproximateRows):
            total = len(among.nodes)
            fetch = k if count == total else math.ceil((2 * k + 20) * total / count)
            width = rows.width_for(fetch)
            if rows.rows_compared(width) < count:
                scores, found = _passing(among.nodes, k, *rows.search(queries, fetch, width))
                missed = found[:, k - 1] == NO_ID
                if missed.any():
                    scores[missed], found[missed] = self._scan(queries[missed], k, among.nodes)
                return scores, found, bool(missed.all())
        return *self._scan(queries, k, among.nodes), True

    def _scan(self, queries: Vectors, k: int, among: NDArray[np.bool_]) -> Scored:
        selector = None if among.all() else faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))
        return self._rows.scan(queries, k, selector)

    def _gather(self, queries: Vectors, k: int, among: NDArray[np.bool_]) -> SearchResult:
        """Return the nearest `among` few rows, exactly."""
        rows = np.flatnonzero(among)
        best = no_rows(queries)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            nodes = self._copies.nodes_of(block, len(self._ids) - len(self._copies))
            distances = exact_distances(self._metric, queries, self._rows.vectors(nodes))
            ids = np.broadcast_to(self._ids[block], distances.shape)
            best = nearest(np.hstack([best.ids, ids]), np.hstack([best.distances, distances]), k)
        return best


class _Lookup:
    """Where each of (N,) ids is, counted from `start`; where they are in order, as a build streams them, without copies
    of them."""

    def __init__(self, ids: Ids, start: int) -> None:
        is_sorted = bool((ids[1:] > ids[:-1]).all())
        self._order = None if is_sorted else np.argsort(ids)
        self._sorted_ids = ids if self._order is None else ids[self._order]
        self._start = start

    def positions(self, ids: Ids) -> NDArray[np.int64]:
        """Return the positions of those that are here."""
        if len(self._sorted_ids) == 0:
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self._sorted_ids, ids), len(self._sorted_ids) - 1)
        places = places[self._sorted_ids[places] == ids]
        positions: NDArray[np.int64] = self._start + (places if self._order is None else self._order[places])
        return positions


class FaissIndex:
    """A `service.index.protocol.VectorIndex`; vectors have `dim` numbers. Searches run on `device` where they can
    (`service.index.gpu`)."""

    def __init__(self, metric: Metric, dim: int, sealed: BuiltIndex | None = None, device: str = "cpu") -> None:
        self._metric = metric
        self._sealed = _Sealed(metric, sealed, device) if sealed is not None else None
        self._tail = Tail(metric, dim)
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        with self._lock.reading():
            return len(self._tail) + (self._sealed.live_count if self._sealed else 0)

    @property
    def tail_size(self) -> int:
        """How many rows came after the file was built: every search compares them all."""
        return len(self._tail)

    @property
    def tombstones(self) -> int:
        """How many rows of the file are skipped by every search, because they were replaced or removed."""
        return self._sealed.buried_count if self._sealed else 0

    def ids(self) -> Ids:
        """Return every id, ascending."""
        with self._lock.reading():
            parts = [self._tail.ids()] + ([self._sealed.live_ids()] if self._sealed else [])
        return np.sort(np.concatenate(parts))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (N,) ids with (N, D) float32 vectors; an id that is there already is replaced."""
        if self._metric == "cosine":
            vectors = normalized(vectors)
        with self._lock.writing():
            if self._sealed:
                self._sealed.bury(ids)
            self._tail.put(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove (N,) ids; unknown ones are ignored."""
        with self._lock.writing():
            if self._sealed:
                self._sealed.bury(ids)
            self._tail.drop(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None, *, exact: bool = False) -> SearchResult:
        """Return the k nearest of each of (Q, D) float32 queries, among `allowed` ids only when given; with `exact`,
        every row that may be found is compared, by its codes.

        Many queries are searched in parts, and between two parts whoever waits to add or remove has a turn.
        """
        if self._metric == "cosine":
            queries = normalized(queries)
        queries = np.ascontiguousarray(queries, np.float32)
        allowed = None if allowed is None else _ascending(allowed)
        at_once = max(1, min(_QUERIES_AT_ONCE, _NUMBERS_AT_ONCE // queries.shape[1]))
        starts = range(0, max(1, len(queries)), at_once)
        parts = [self._search(queries[start : start + at_once], k, allowed, exact=exact) for start in starts]
        return SearchResult(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.distances for part in parts]),
            all(part.is_exact for part in parts),
        )

    def _search(self, queries: Vectors, k: int, allowed: Ids | None, *, exact: bool) -> SearchResult:
        with self._lock.reading(), _one_thread():
            sealed = self._sealed.search(queries, k, allowed, exact=exact) if self._sealed else no_rows(queries)
            tail = self._tail.search(queries, k, self._in_tail(allowed))
        merged = nearest(np.hstack([sealed.ids, tail.ids]), np.hstack([sealed.distances, tail.distances]), k)
        return replace(merged, is_exact=sealed.is_exact)

    def _in_tail(self, allowed: Ids | None) -> Ids | None:
        """Return those of the sorted `allowed` ids that the tail has: the tail would look up each that it is given."""
        if allowed is None or len(allowed) == 0:
            return allowed
        ids = self._tail.ids()
        places = np.minimum(np.searchsorted(allowed, ids), len(allowed) - 1)
        found: Ids = ids[allowed[places] == ids]
        return found


def _passing(among: NDArray[np.bool_], k: int, scores: Vectors, found: NDArray[np.int64]) -> Scored:
    """Return the first k of each row's found positions that are `among` those asked for, padded with -1."""
    passing = (found != NO_ID) & among[found]
    first = np.argsort(~passing, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(np.where(passing, found, NO_ID), first, axis=1)
    return np.take_along_axis(scores, first, axis=1), found


def _ascending(ids: Ids) -> Ids:
    """Return the ids in order, each once; `np.unique` hashes them, which takes a hundred times as long."""
    ordered = np.sort(ids)
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    once: Ids = ordered[is_first]
    return once


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep a search in its request's thread. The setting is this thread's own, and a build in it wants the old one."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
