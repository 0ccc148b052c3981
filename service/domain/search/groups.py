"""Groups: one best neighbour for each value of a label or of a path in the metadata.

The index knows no values. It is asked for more and more neighbours, until they have as many values as groups are
wanted, or there are no more, or a bound is reached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Text, any_, case, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY

from service.db import Database
from service.domain.search.filters import InvalidFilter, compile_field
from service.errors import Unprocessable
from service.index.protocol import NO_ID, Ids, SearchResult
from service.tables import Item

MAX_LOOKED_AT = 10_000  # neighbours of a query, to find its groups
_ALL_LOOKED_AT = 100_000  # of all queries of a request
_FIRST_STEP, _STEP = 4, 4

# (queries (n,), how many neighbours) -> those of these queries.
SearchFor = Callable[[NDArray[np.int64], int], SearchResult]
Value = str | bool | Decimal | None


class InvalidGrouping(Unprocessable):
    """What to group by is no label and no path."""


@dataclass(frozen=True)
class Groups:
    """Of each query the best neighbours of its groups, as ids (Q, k) and distances (Q, k), nearest first; `values` are
    those of the ids. A query is `complete` unless groups may be missing because the bound was reached."""

    found: SearchResult
    values: dict[int, Value]
    complete: list[bool]


def check_grouping(field: str) -> None:
    """Raise `InvalidGrouping` (422) unless the field is `label` or `metadata.<path>`."""
    if field == "label":
        return
    try:
        if field.startswith("metadata."):
            compile_field(field)
            return
    except InvalidFilter:
        pass
    raise InvalidGrouping("group_by is label, or metadata.<path> as filters have it.")


def find_groups(database: Database, field: str, k: int, queries: int, search: SearchFor) -> Groups:
    """Return the k best groups of each query. An item without a value, or whose value is null, a list or an object, is
    a group by itself."""
    ids = np.full((queries, k), NO_ID, np.int64)
    distances = np.full((queries, k), np.inf, np.float32)
    values: dict[int, Value] = {}
    complete, is_exact = [False] * queries, True
    bound = max(k, min(MAX_LOOKED_AT, _ALL_LOOKED_AT // queries))
    open_, fetch = np.arange(queries), min(bound, _FIRST_STEP * k)
    while True:
        found = search(open_, fetch)
        _look_up(database, field, found.ids, values)
        is_open = np.zeros(len(open_), np.bool_)
        for row, query in enumerate(open_.tolist()):
            best = _best(found.ids[row].tolist(), values, k)
            ids[query, : len(best)] = found.ids[row, best]
            distances[query, : len(best)] = found.distances[row, best]
            complete[query] = len(best) == k or int(found.ids[row, -1]) == NO_ID
            is_open[row] = not complete[query]
        is_exact &= found.is_exact
        open_ = open_[is_open]
        if len(open_) == 0 or fetch == bound:
            return Groups(SearchResult(ids, distances, is_exact), values, complete)
        fetch = min(bound, _STEP * fetch)


def _best(ids: list[int], values: dict[int, Value], k: int) -> list[int]:
    """Return the places of the first item of each group, at most k; items that are no more have no value, not even
    None."""
    places: list[int] = []
    seen: set[tuple[type, Value]] = set()
    for place, id_ in enumerate(ids):
        if id_ not in values:
            continue
        value = values[id_]
        key = (type(value), value)  # in Python true is 1
        if value is None or key not in seen:
            seen.add(key)
            places.append(place)
            if len(places) == k:
                break
    return places


def _look_up(database: Database, field: str, ids: Ids, values: dict[int, Value]) -> None:
    """Add the values of the live ones of the items that are not known yet."""
    wanted = np.setdiff1d(ids[ids != NO_ID], np.fromiter(values, np.int64, len(values))).tolist()
    if not wanted:
        return
    value = compile_field(field)
    kind = func.jsonb_typeof(value)
    scalar = case((kind.in_(["string", "number", "boolean"]), value.op("#>>")(literal([], ARRAY(Text)))))
    is_wanted = Item.id == any_(literal(wanted, ARRAY(BigInteger)))
    query = select(Item.id, kind, scalar).where(is_wanted, Item.deleted_at.is_(None))
    with database.reading() as connection:
        for id_, kind_, text in connection.execute(query):
            values[id_] = _value(kind_, text)


def _value(kind: str | None, text: str | None) -> Value:
    if text is None:
        return None
    if kind == "number":
        return Decimal(text)
    return text == "true" if kind == "boolean" else text
