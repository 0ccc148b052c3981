"""Pages: all neighbours of one query by and by, each once, in one order.

The order is that of the distances to what is stored, which PostgreSQL computes, and of items' ids where these are
equal. So it is the same whichever process answers, and whatever its index holds in memory or in a newer file. The index
only says which items are worth looking at: it compares every row, and where what it found may not be all that belongs
to the page, it is asked for more; past what it may be asked for, PostgreSQL goes through the whole generation.

Pages are of the gallery's revision at the first page. An item that was written or deleted since is on no later page: it
could be where it was shown before. All others are as they were, and so are their places.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select, text

from service.domain.gallery.current_rows import is_current
from service.domain.gallery.generations import GenerationKey
from service.domain.search.cursors import MAX_PAGED, Cursor
from service.index.protocol import NO_ID, Ids, Metric, VectorIndex, Vectors
from service.tables import Gallery, embeddings_table

_MOST_FETCHED = 16_384  # neighbours of one search of an index; more than Milvus gives
_SPARE = 64  # are fetched beyond those that a page needs, since some may have been written since
# How much more than the most that an index errs by for a row that it found, it may for one that it did not find.
_MARGIN = 4.0
_OPERATORS: dict[Metric, str] = {"l2": "<->", "cosine": "<=>", "ip": "<#>"}


@dataclass(frozen=True)
class Wanted:
    """Which neighbours of a vector (D,) float32: the next `count` after a cursor, or the first ones, of the generation
    at the revision. None of the `excluded` items (E,), none farther than `max_distance`, and only `allowed` ones."""

    vector: Vectors
    generation: GenerationKey
    revision: int
    count: int
    after: Cursor | None
    allowed: Ids | None
    excluded: Ids
    max_distance: float | None

    @property
    def position(self) -> int:
        return 0 if self.after is None else self.after.position


@dataclass(frozen=True)
class Page:
    """Neighbours in their order, ids (n,) and distances (n,) float64, and whether others follow. `is_exact` says that
    all rows were compared to find them."""

    ids: Ids
    distances: NDArray[np.float64]
    has_more: bool
    is_exact: bool


def read_page(connection: Connection, index: VectorIndex, wanted: Wanted) -> Page:
    """Return a page; the index has followed at least to the revision that is wanted."""
    count = min(wanted.count, MAX_PAGED - wanted.position)
    ranking = _Ranking(connection, wanted)
    for fetch in _steps(wanted.position + count + len(wanted.excluded) + _SPARE):
        found = index.search(wanted.vector[None], fetch, wanted.allowed, exact=True)
        ids, distances, horizon = ranking.of(found.ids[0], found.distances[0])
        if len(ids) > count or math.isinf(horizon):
            return Page(ids[:count], distances[:count], len(ids) > count, found.is_exact)
    ids, distances = ranking.of_all(count + 1)
    return Page(ids[:count], distances[:count], len(ids) > count, is_exact=True)


def _steps(first: int) -> Iterator[int]:
    """Give how many neighbours to ask an index for: twice as many each time."""
    fetch = first
    while fetch < _MOST_FETCHED:
        yield fetch
        fetch *= 2
    yield _MOST_FETCHED


class _Ranking:
    """Puts items in the order of pages, by their current rows."""

    def __init__(self, connection: Connection, wanted: Wanted) -> None:
        self._connection = connection
        self._wanted = wanted
        metric = connection.execute(select(Gallery.metric).where(Gallery.id == wanted.generation.gallery_id)).scalar()
        dim = len(wanted.vector)
        # In float32 of what is stored: to compare it as it is stored would round the query to float16.
        distance = f"e.embedding::vector({dim}) {_OPERATORS[metric or 'l2']} CAST(:query AS vector({dim}))"
        if metric == "cosine":  # a zero vector has no direction, and is at distance 1 from everything
            distance = f"coalesce(nullif({distance}, 'NaN'), 1)"
        self._rows = (
            f"SELECT i.id, {distance} AS distance FROM {embeddings_table(wanted.generation.generation_id)} e"
            f" JOIN items i ON {is_current('e')}"
            " WHERE i.gallery_id = :gallery_id AND i.revision <= :revision AND i.id <> ALL(:excluded)"
        )
        self._parameters: dict[str, Any] = {
            "query": str(wanted.vector.tolist()),
            "gallery_id": wanted.generation.gallery_id,
            "revision": wanted.revision,
            "excluded": wanted.excluded.tolist(),
        }

    def of(self, found: Ids, near: Vectors) -> tuple[Ids, NDArray[np.float64], float]:
        """Return those of the found ids (F,) that belong after the cursor, in their order, with their distances, up to
        a horizon: the distance from which on the index, by its distances `near` (F,), may have found others instead.
        It is infinite where there is nothing else."""
        rows = self._connection.execute(
            text(f"{self._rows} AND i.id = ANY(:ids)"), {**self._parameters, "ids": found[found != NO_ID].tolist()}
        ).all()
        ids = np.array([row[0] for row in rows], np.int64)
        distances = np.array([row[1] for row in rows], np.float64)

        horizon = math.inf
        if found[-1] != NO_ID:
            order = np.argsort(found)
            errors = np.abs(distances - near[order[np.searchsorted(found, ids, sorter=order)]])
            horizon = float(near[-1]) - _MARGIN * float(errors.max(initial=0.0))
        limit = self._wanted.max_distance
        if limit is not None and limit < horizon:
            is_in, horizon = distances <= limit, math.inf
        else:
            is_in = distances < horizon
        is_in &= np.isfinite(distances) & self._is_after(ids, distances)
        ids, distances = ids[is_in], distances[is_in]
        order = np.lexsort((ids, distances))
        return ids[order], distances[order], horizon

    def of_all(self, count: int) -> tuple[Ids, NDArray[np.float64]]:
        """Return the first `count` that belong after the cursor, of all rows: one pass, in bounded memory."""
        conditions, parameters = ["distance < :limit_", "distance > '-Infinity'"], {"limit_": math.inf, "count": count}
        if self._wanted.max_distance is not None:
            conditions[0], parameters["limit_"] = "distance <= :limit_", self._wanted.max_distance
        if self._wanted.after is not None:
            conditions.append("(distance, id) > (:distance, :item_id)")
            parameters |= {"distance": self._wanted.after.distance, "item_id": self._wanted.after.item_id}
        rows = self._rows
        if self._wanted.allowed is not None:
            rows = f"{rows} AND i.id = ANY(:ids)"
            parameters["ids"] = self._wanted.allowed.tolist()
        # OFFSET 0: or else the distance would be computed for the condition, and again for the order.
        found = self._connection.execute(
            text(
                f"SELECT id, distance FROM ({rows} OFFSET 0) r WHERE {' AND '.join(conditions)}"
                " ORDER BY distance, id LIMIT :count"
            ),
            {**self._parameters, **parameters},
        ).all()
        return np.array([row[0] for row in found], np.int64), np.array([row[1] for row in found], np.float64)

    def _is_after(self, ids: Ids, distances: NDArray[np.float64]) -> NDArray[np.bool_]:
        after = self._wanted.after
        if after is None:
            return np.ones(len(ids), np.bool_)
        is_after: NDArray[np.bool_] = (distances > after.distance) | (
            (distances == after.distance) & (ids > after.item_id)
        )
        return is_after
