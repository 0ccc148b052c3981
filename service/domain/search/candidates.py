"""Which items may be neighbours of a query, which may not, and the nearest of those that may."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import func, literal, select

from service.db import Database
from service.domain.gallery.new_items import canonical_id, check_external_id
from service.domain.search.answers import InvalidQuery, Query
from service.domain.search.filters import compile_filter
from service.index.protocol import NO_ID, Ids, SearchResult, Vectors
from service.index.served import ServedGeneration
from service.tables import Gallery, Item


def nearest_of(
    served: ServedGeneration, vectors: Vectors, query: Query, allowed: Ids | None, excluded: Ids | None
) -> SearchResult:
    """Return the k nearest within the largest distance, of each query without its `excluded` items (Q, E)."""
    if excluded is None:
        found = served.index.search(vectors, query.k, allowed)
    else:
        found = _without(served.index.search(vectors, query.k + excluded.shape[1], allowed), excluded)
    if query.max_distance is None:
        return found
    # In float64, where a distance of an earlier answer compares as equal to itself.
    too_far = found.distances.astype(np.float64) > query.max_distance
    return replace(found, ids=np.where(too_far, NO_ID, found.ids))


def _without(found: SearchResult, excluded: Ids) -> SearchResult:
    """Return E neighbours fewer of each query: not its excluded ones (Q, E), else not its farthest."""
    is_excluded = np.zeros(found.ids.shape, np.bool_)
    for column in excluded.T:
        is_excluded |= (found.ids == column[:, None]) & (column != NO_ID)[:, None]
    first = np.argsort(is_excluded, axis=1, kind="stable")[:, : found.ids.shape[1] - excluded.shape[1]]
    return replace(
        found,
        ids=np.take_along_axis(found.ids, first, axis=1),
        distances=np.take_along_axis(found.distances, first, axis=1),
    )


def allowed_items(database: Database, served: ServedGeneration, condition: dict[str, Any]) -> tuple[Ids, int]:
    """Return the ids of the items that pass, in no order, and the gallery's revision at which they do; the ids as one
    value, since a row each takes longer than a search."""
    joined = func.string_agg(func.int8send(Item.id), literal(b""))
    revision = select(Gallery.revision).where(Gallery.id == served.gallery_id).scalar_subquery()
    passes = compile_filter(condition, served.generation_id)
    query = select(joined, revision).where(Item.gallery_id == served.gallery_id, Item.deleted_at.is_(None), passes)
    with database.reading() as connection:
        ids, at = connection.execute(query).one()
    return np.frombuffer(ids or b"", ">i8").astype(np.int64), at or 0


def excluded_items(database: Database, gallery_id: int, query: Query, queries: int) -> Ids:
    """Return the ids of the items that are left out of each query, (Q, E), filled up with no id."""
    of_all = [] if query.exclude_id is None else [query.exclude_id]
    wanted = [canonical_ids([*of_all, *own]) for own in query.exclude_ids or [()] * queries]
    if len(wanted) != queries:
        raise InvalidQuery(f"There are {queries} query vectors, and exclude_ids for {len(wanted)}.")
    names = {name for own in wanted for name in own}
    rows = select(Item.external_id, Item.id).where(Item.gallery_id == gallery_id, Item.external_id.in_(names))
    with database.reading() as connection:
        ids: dict[str, int] = {row.external_id: row.id for row in connection.execute(rows)}
    excluded = np.full((queries, max(map(len, wanted))), NO_ID, np.int64)
    for place, own in enumerate(wanted):
        excluded[place, : len(own)] = [ids.get(name, NO_ID) for name in own]
    return excluded


def canonical_ids(external_ids: Sequence[str]) -> list[str]:
    """Return the ids in the form that they are stored in. Raises `InvalidItem` (422)."""
    names = list(map(canonical_id, external_ids))
    for name in names:
        check_external_id(name)
    return names
