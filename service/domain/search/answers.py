"""What is searched for, and what an answer says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.domain.search.described_items import DescribedItem
from service.domain.search.groups import Value
from service.errors import Unprocessable

MAX_K = 1000
Which = Literal["active", "next"] | int


class InvalidQuery(Unprocessable):
    """The query vectors do not fit the generation."""


@dataclass(frozen=True)
class Neighbor:
    """An item that was found, and how far its embedding is from the query's; the value of its group, if any."""

    item: DescribedItem
    distance: float
    group: Value = None


@dataclass(frozen=True)
class Answer:
    """Neighbours per query, nearest first, all of one generation at one revision.

    `is_exact` says that every vector that may be a neighbour was compared with the query, as the index holds it: a
    graph's are rounded to float16. When False, a graph was walked, and a few of the nearest may be missing.
    `next_cursor` asks for the page after this one, if there is one. `complete` says of each query in groups whether all
    of its best groups were found.
    """

    model_version: str
    generation: int
    revision: int
    is_exact: bool
    neighbors: list[list[Neighbor]]
    next_cursor: str | None = None
    complete: list[bool] | None = None


@dataclass(frozen=True)
class Query:
    """What to search for besides the vectors; `max_distance` is inclusive.

    `exclude_id` is an item that is never a neighbour, and `exclude_ids` are those that are none of each query vector;
    one that does not exist is none anyway. Without a `generation` the active one answers, or the candidate those image
    queries that its canary takes: the same for a `canary_key`. By its id, any that is stored answers. With a `cursor`,
    or `*` for the first, the answer is a page (`service.domain.search.pages`), and no canary's. With `group_by`, it is
    the best of each group (`service.domain.search.groups`).
    """

    k: int
    condition: dict[str, Any] | None = None
    generation: Which | None = None
    model_version: str | None = None
    max_distance: float | None = None
    exclude_id: str | None = None
    exclude_ids: Sequence[Sequence[str]] = ()
    canary_key: str | None = None
    cursor: str | None = None
    group_by: str | None = None
