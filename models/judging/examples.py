"""Queries and items that show what numbers mean: flips, answers that changed most, hubs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.judging.evidence import Queries
from models.judging.rankings import overlap
from models.judging.search import NO_ID, Neighbours

_OF_A_KIND = 20
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """A query and the ids of both answers. query: its place among the references, and after them the other queries;
    item_id: the item that it is the image of, None for another one's."""

    query: int
    item_id: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Hub:
    """An item and how many of the answers have it, before and after."""

    item_id: int
    before: int
    after: int


@dataclass(frozen=True)
class Examples:
    """Up to 20 of each kind. Flips are drawn by the seed; churn has the least overlap, hubs the most answers after."""

    negative_flips: tuple[Example, ...] = ()
    positive_flips: tuple[Example, ...] = ()
    churn: tuple[Example, ...] = ()
    hubs: tuple[Hub, ...] = ()


def choose_examples(
    asked: Sequence[Queries], before: Neighbours, after: Neighbours, lost: Rows, gained: Rows, seed: int
) -> Examples:
    """lost, gained: the places of the queries that flipped."""
    own = np.concatenate([queries.item_ids for queries in asked])
    generator = np.random.default_rng(seed)

    def shown(places: Rows) -> tuple[Example, ...]:
        return tuple(
            Example(
                place,
                None if own[place] == NO_ID else int(own[place]),
                *(tuple(ids[place][ids[place] != NO_ID].tolist()) for ids in (before.ids, after.ids)),
            )
            for place in places.tolist()
        )

    flipped = [shown(np.sort(generator.permutation(places)[:_OF_A_KIND])) for places in (lost, gained)]
    changed = np.argsort(overlap(before.ids, after.ids), kind="stable")[:_OF_A_KIND]
    return Examples(flipped[0], flipped[1], shown(changed), _hubs(before, after))


def _hubs(before: Neighbours, after: Neighbours) -> tuple[Hub, ...]:
    ids, counts = np.unique(after.ids[after.ids != NO_ID], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_OF_A_KIND]
    return tuple(
        Hub(id_, int((before.ids == id_).sum()), count)
        for id_, count in zip(ids[most].tolist(), counts[most].tolist(), strict=True)
    )
