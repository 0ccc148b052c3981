"""What references tell: how near h comes to re-encoding, without a label, and with labels how it retrieves among them.

Everything here is inside the set of references: each is asked by its new embedding of all others, or of all.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.judging.evidence import References
from models.judging.flips import Flips, flips
from models.judging.intervals import Draws, Hits, Interval, Labels, hit_difference, score_difference
from models.judging.rankings import Scores, overlap, own_first
from models.judging.search import Ids, Neighbours, exact_distances, nearest_items
from models.metrics import Metric, RetrievalPerQuery, Vectors, gap_closed, query_metrics, vector_errors
from models.normalize import l2_normalize

_K = 10


@dataclass(frozen=True)
class OwnItem:
    """How often an image finds its own item first, and among the first ten, 0 to 1."""

    at_1: float
    at_10: float


@dataclass(frozen=True)
class Standing:
    """How a stand-in for re-encoding does. overlap: the mean share of the ten nearest of new/new that it has too;
    relative_error: its squared error over that of always answering the mean, None for another space and where it is not
    finite."""

    overlap: float
    own_item_first: OwnItem
    relative_error: float | None


@dataclass(frozen=True)
class Retrieval:
    """CMC@1 and @5 and mAP, 0 to 1."""

    cmc1: float
    cmc5: float
    map: float


@dataclass(frozen=True)
class LabelledReferences:
    """Retrieval among the n references that have a positive there, query/gallery; flips of CMC@1 against old/old.

    h_h is asked by h's output, as nothing is in service. gap_closed: None where re-encoding changes nothing.
    """

    n: int
    old_old: Retrieval
    new_h: Retrieval
    new_new: Retrieval
    h_h: Retrieval
    gap_closed: dict[str, float | None]
    new_h_flips: Flips
    new_new_flips: Flips


@dataclass(frozen=True)
class ReferencesReport:
    """h beside its floors: the linear map, and doing nothing, which is old/old (its error is not of the new space).
    The differences are h's less the linear map's, None without one. explained: the share of the variance of what φ_new
    gives that h explains, 1 less its relative error, by directions where these are compared; None where φ_new gives one
    vector alone."""

    n: int
    source: str
    h: Standing
    linear: Standing | None
    nothing: Standing
    overlap_above_linear: Interval | None
    own_item_above_linear: Interval | None
    labelled: LabelledReferences | None
    explained: Interval | None


def judge_references(references: References, metric: Metric, draws: Draws) -> ReferencesReport:
    """Raises ValueError for values that are not finite among what φ gave, and for fewer than two references."""
    queries = references.queries
    if len(queries) < 2:
        raise ValueError("One reference has no neighbours.")
    ids = np.arange(len(queries))
    wanted = nearest_items(queries.after, [(ids, queries.after)], _K, metric, ids).ids
    standing, overlaps, firsts = _stand(queries.after, references.transformed, wanted, metric)
    nothing = _stand(queries.before, queries.before, wanted, metric)[0]
    linear = above = own = None
    if references.linear is not None:
        linear, linear_overlaps, linear_firsts = _stand(queries.after, references.linear, wanted, metric)
        above = score_difference(linear_overlaps, overlaps, queries.labels, draws)
        own = hit_difference(linear_firsts, firsts, queries.labels, draws)
    labelled = None if queries.labels is None else _retrieve(references, queries.labels, metric, draws)
    explained = _explained(references, metric, draws)
    return ReferencesReport(len(queries), queries.source, standing, linear, nothing, above, own, labelled, explained)


def standing(queries: Vectors, items: Vectors, metric: Metric) -> Standing:
    """Return how items stand in for re-encoded ones. queries, items: (N, D) float32, what φ_new gives and what h does.
    Raises ValueError for fewer than two."""
    ids = np.arange(len(queries))
    wanted = nearest_items(queries, [(ids, queries)], _K, metric, ids).ids
    return _stand(queries, items, wanted, metric)[0]


def _explained(references: References, metric: Metric, draws: Draws) -> Interval | None:
    target, found = references.queries.after, references.transformed
    found = np.where(np.isfinite(found).all(axis=1, keepdims=True), found, 0)
    if metric == "cosine":
        target, found = l2_normalize(target), l2_normalize(found)
    spread = np.square(target - target.mean(axis=0), dtype=np.float64).sum(axis=1)
    unit = spread.mean()
    if unit == 0:
        return None
    errors = np.square(found - target, dtype=np.float64).sum(axis=1)
    found_share = score_difference(errors / unit, spread / unit, references.queries.labels, draws)
    return replace(found_share, high=min(1.0, found_share.high))


def _stand(queries: Vectors, items: Vectors, wanted: Ids, metric: Metric) -> tuple[Standing, Scores, Hits]:
    """Return how items stand in for (N, D) re-encoded ones, and per query (N,) overlap and own item first."""
    ids = np.arange(len(queries))
    found = nearest_items(queries, [(ids, items)], _K, metric, ids)
    overlaps = overlap(wanted, found.ids)
    own = paired_distances(queries, items, metric)
    first = own_first(own, ids, found, 1)
    error = None
    if queries is not items:
        errors = vector_errors(items, queries)
        ratio = errors["mean_squared_error"] / (errors["mean_predictor_error"] or 1.0)
        error = ratio if np.isfinite(ratio) else None
    standing = Standing(float(overlaps.mean()), own_item(own, ids, found), error)
    return standing, overlaps, first


def own_item(own_distances: Vectors, own_ids: Ids, others: Neighbours) -> OwnItem:
    """(N,) distances to the own items and their ids, and the nearest others -> how often the own item is first."""
    return OwnItem(*(float(own_first(own_distances, own_ids, others, k).mean()) for k in (1, _K)))


def paired_distances(queries: Vectors, items: Vectors, metric: Metric) -> Vectors:
    """(N, D), (N, D) -> (N,) float32 distances, computed as the search computes them; +inf where one is not finite."""
    found = np.full(len(queries), np.inf, np.float32)
    finite = np.isfinite(items).all(axis=1)
    found[finite] = exact_distances(queries[finite], items[finite], metric)
    return found


def _retrieve(references: References, labels: Labels, metric: Metric, draws: Draws) -> LabelledReferences | None:
    chosen = np.flatnonzero(_have_a_positive(labels))
    if not len(chosen):
        return None
    before, after = references.queries.before[chosen], references.queries.after[chosen]
    transformed, own = np.nan_to_num(references.transformed[chosen], posinf=0, neginf=0), labels[chosen]

    def per_query(query: Vectors, gallery: Vectors) -> RetrievalPerQuery:
        return query_metrics(query, own, gallery, own, True, metric)

    old_old, new_h, new_new = per_query(before, before), per_query(after, transformed), per_query(after, after)
    means = [_mean(found) for found in (old_old, new_h, new_new, per_query(transformed, transformed))]
    gaps = {name: _gap(*(getattr(mean, name) for mean in means[:3])) for name in ("cmc1", "cmc5", "map")}
    hits = [found.first_match_ranks < 1 for found in (old_old, new_h, new_new)]
    pairs = [flips(hits[0], after, own, draws) for after in hits[1:]]
    return LabelledReferences(len(chosen), means[0], means[1], means[2], means[3], gaps, pairs[0], pairs[1])


def _have_a_positive(labels: Labels) -> NDArray[np.bool_]:
    _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (counts[group] > 1) & (labels >= 0)


def _mean(found: RetrievalPerQuery) -> Retrieval:
    ranks = found.first_match_ranks
    return Retrieval(float((ranks < 1).mean()), float((ranks < 5).mean()), float(np.nanmean(found.average_precisions)))


def _gap(old_old: float, new_h: float, new_new: float) -> float | None:
    gap = gap_closed(old_old, new_h, new_new)
    return None if np.isnan(gap) else gap
