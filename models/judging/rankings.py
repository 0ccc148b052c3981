"""How alike two rankings of the same query are, whether an item is found by its own image, and how uneven answers are.

Rankings are (Q, k) int64 ids, nearest first, padded with `NO_ID`; no id twice in a row.
"""

import numpy as np
from numpy.typing import NDArray

from models.judging.search import NO_ID, Ids, Neighbours
from models.metrics import Vectors

Scores = NDArray[np.float64]
_PERSISTENCE = 0.9  # Webber et al.'s example: the first ten ranks have 86 % of the weight


def overlap(first: Ids, second: Ids) -> Scores:
    """Return (Q,) the share of the first ranking's ids that the second one has, of as many as the longer one has; 1
    where both are empty."""
    common = _common(first, second).sum(axis=(1, 2))
    longer = np.maximum((first != NO_ID).sum(axis=1), (second != NO_ID).sum(axis=1))
    return np.where(longer == 0, 1.0, common / np.maximum(longer, 1))


def rank_biased_overlap(first: Ids, second: Ids, persistence: float = _PERSISTENCE) -> Scores:
    """Return (Q,) rank-biased overlap, extrapolated (Webber, Moffat and Zobel, ACM TOIS, 2010, equation 32, which
    rankings of unequal length may have too); 1 where both are empty."""
    lengths = np.sort(np.stack([(ranking != NO_ID).sum(axis=1) for ranking in (first, second)]), axis=0)
    shorter, longer = lengths[0][:, None], lengths[1][:, None]  # (Q, 1)
    depth = np.arange(1, first.shape[1] + 1)  # (k,)
    common = _common(first, second)
    agreed = np.cumsum(np.cumsum(common, axis=1), axis=2).diagonal(axis1=1, axis2=2)  # (Q, k): X_d

    at_shorter = np.where(shorter > 0, np.take_along_axis(agreed, np.maximum(shorter - 1, 0), axis=1), 0)
    at_longer = np.where(longer > 0, np.take_along_axis(agreed, np.maximum(longer - 1, 0), axis=1), 0)
    per_shorter = at_shorter / np.maximum(shorter, 1)
    beyond = np.where(depth > shorter, per_shorter * (depth - shorter), 0)
    terms = np.where(depth <= longer, (agreed + beyond) / depth * persistence**depth, 0)
    rest = (at_longer - at_shorter) / np.maximum(longer, 1) + per_shorter
    found = (1 - persistence) / persistence * terms.sum(axis=1) + (rest * persistence**longer)[:, 0]
    return np.where(longer[:, 0] == 0, 1.0, found)


def own_first(own_distances: Vectors, own_ids: Ids, others: Neighbours, k: int) -> NDArray[np.bool_]:
    """Return (Q,) whether fewer than k others come before the item whose image a query is; of equal distances, the
    smaller id does, so that in a gallery of copies hardly any item is found.

    own_distances, own_ids: (Q,); others: at least k of the nearest without that item.
    """
    distances, ids = others.distances[:, :k], others.ids[:, :k]
    before = (distances < own_distances[:, None]) | ((distances == own_distances[:, None]) & (ids < own_ids[:, None]))
    found: NDArray[np.bool_] = (before & (ids != NO_ID)).sum(axis=1) < k
    return found & np.isfinite(own_distances)


def occurrences(answers: Ids, items: int) -> NDArray[np.int64]:
    """Return how often each of `items` items is answered, descending; most are not at all, and have 0."""
    counts = np.unique(answers[answers != NO_ID], return_counts=True)[1]
    return np.concatenate([np.sort(counts)[::-1], np.zeros(items - len(counts), np.int64)])


def hubness(answers: Ids, items: int) -> float:
    """Return the skewness of how often each item is answered (Radovanović et al., JMLR, 2010, section 2.2): large where
    few items, the hubs, are in many answers; 0 where all are in as many."""
    counts = occurrences(answers, items).astype(np.float64)
    deviations = counts - counts.mean()
    spread = float(deviations.std())
    return float((deviations**3).mean()) / spread**3 if spread else 0.0


def _common(first: Ids, second: Ids) -> NDArray[np.bool_]:
    """(Q, k), (Q, k) -> (Q, k, k), whether the ids at two ranks are the same."""
    same: NDArray[np.bool_] = first[:, :, None] == second[:, None, :]
    same &= (first != NO_ID)[:, :, None]
    return same
