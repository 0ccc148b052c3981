"""Examples of what an upgrade changes, for a person to look at: the queries that change most, with both answers.

Q queries in the order of the evidence, of which references are the first; answers are without the queries' own items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.judging.evidence import Queries
from models.judging.rankings import overlap, rank_biased_overlap
from models.judging.search import NO_ID, Ids, Neighbours
from models.judging.served import JudgedRanks
from models.metrics import Vectors

MOST = 50
SHOWN = 5


@dataclass(frozen=True)
class Shown:
    """The first five ids of an answer and their distances, nearest first."""

    ids: tuple[int, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A query by its item, `NO_ID` where it is none, and both answers to it. The values are what it was chosen by, None
    where there is none; `Examples` says what they are."""

    item_id: int
    value_before: float | None
    value_after: float | None
    before: Shown
    after: Shown


@dataclass(frozen=True)
class Examples:
    """Up to 50 of each kind, the most telling first; equal ones are in the order of the evidence, hubs in that of ids.

    negative_flips, positive_flips: of queries that were right at rank 1 and are not, and the reverse, those for which
    the first right item moved furthest; the values are its ranks, from 1, None beyond ten. churn: the answers that have
    least in common; the value after is their overlap@10. hubs: the items that are in most answers of the next
    generation; the values are in how many, and their answers are the items whose queries found them, nearest first.
    uncertain: the references of which h expects the largest error; the value after is that squared error.
    """

    negative_flips: tuple[Example, ...] = ()
    positive_flips: tuple[Example, ...] = ()
    churn: tuple[Example, ...] = ()
    hubs: tuple[Example, ...] = ()
    uncertain: tuple[Example, ...] = ()


NO_EXAMPLES = Examples()


@dataclass(frozen=True)
class _Answered:
    """own: (Q,) the queries' items; both answers to each."""

    own: Ids
    before: Neighbours
    after: Neighbours

    def example(self, row: int, value_before: float | None, value_after: float | None) -> Example:
        answers = [_shown(found.ids[row], found.distances[row]) for found in (self.before, self.after)]
        return Example(int(self.own[row]), value_before, value_after, *answers)


def choose_examples(
    asked: Sequence[Queries],
    answers: tuple[Neighbours, Neighbours],
    judged: JudgedRanks | None,
    uncertainty: Vectors | None,
) -> Examples:
    """Return examples of all queries. `answers`: before and after; uncertainty: (N,) the squared error that h expects
    of each reference, NaN where it does not say, or None."""
    if not asked:
        return NO_EXAMPLES
    answered = _Answered(np.concatenate([queries.item_ids for queries in asked]), *answers)
    negative: tuple[Example, ...] = ()
    positive: tuple[Example, ...] = ()
    if judged is not None:
        negative = _flips(answered, judged, lost=judged.after, kept=judged.before)
        positive = _flips(answered, judged, lost=judged.before, kept=judged.after)
    uncertain = () if uncertainty is None else _uncertain(answered, uncertainty)
    return Examples(negative, positive, _churn(answered), _hubs(answered), uncertain)


def _flips(
    answered: _Answered, judged: JudgedRanks, lost: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[Example, ...]:
    """Return queries whose answer is right at rank 1 in `kept` and not in `lost`."""
    flipped = np.flatnonzero((kept == 0) & (lost > 0))
    places = flipped[np.argsort(-lost[flipped], kind="stable")][:MOST]
    beyond = answered.before.ids.shape[1]

    def rank(ranks: NDArray[np.int64], place: int) -> float | None:
        return None if ranks[place] >= beyond else int(ranks[place]) + 1

    return tuple(
        answered.example(int(judged.rows[place]), rank(judged.before, place), rank(judged.after, place))
        for place in places
    )


def _churn(answered: _Answered) -> tuple[Example, ...]:
    """Return answers that differ; where as much is common, those whose first ranks have less of it come first."""
    before, after = answered.before.ids, answered.after.ids
    common = overlap(before, after)
    order = np.lexsort((rank_biased_overlap(before, after), common))
    rows = order[common[order] < 1][:MOST]
    return tuple(answered.example(int(row), None, float(common[row])) for row in rows)


def _hubs(answered: _Answered) -> tuple[Example, ...]:
    before, after = answered.before.ids, answered.after.ids
    ids, times = np.unique(after[after != NO_ID], return_counts=True)
    hubs = ids[np.argsort(-times, kind="stable")][:MOST]
    return tuple(
        Example(
            int(hub),
            int((before == hub).sum()),
            int((after == hub).sum()),
            *(_finders(answered.own, found, hub) for found in (answered.before, answered.after)),
        )
        for hub in hubs
    )


def _finders(own: Ids, found: Neighbours, item_id: int) -> Shown:
    """Return the items whose queries found one, nearest first; queries that are no item cannot be shown."""
    rows, ranks = np.nonzero((found.ids == item_id) & (own != NO_ID)[:, None])
    distances = found.distances[rows, ranks]
    order = np.argsort(distances, kind="stable")
    return _shown(own[rows[order]], distances[order])


def _uncertain(answered: _Answered, uncertainty: Vectors) -> tuple[Example, ...]:
    known = np.flatnonzero(np.isfinite(uncertainty))
    rows = known[np.argsort(-uncertainty[known], kind="stable")][:MOST]
    return tuple(answered.example(int(row), None, float(uncertainty[row])) for row in rows)


def _shown(ids: Ids, distances: Vectors) -> Shown:
    """(k,) ids, padded with `NO_ID`, and their distances -> the first of them."""
    there = np.flatnonzero(ids != NO_ID)[:SHOWN]
    return Shown(tuple(ids[there].tolist()), tuple(distances[there].tolist()))
