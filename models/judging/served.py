"""What will be served: queries that are judged by labels or relevant items, asked of both whole galleries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.judging.evidence import Galleries, Queries
from models.judging.flips import Flips, flips
from models.judging.intervals import Draws, Interval, score_difference
from models.judging.search import NO_ID, Ids, Neighbours
from models.judging.slices import MinorityGap, Slice, found_rules, minority_gaps, named_slices
from models.metrics import Labels, Vectors, query_metrics

_NO_LABEL = -1


@dataclass(frozen=True)
class SampledPrecision:
    """mAP of old/old and new/h in a sample of the gallery, of queries that have a positive there."""

    queries: int
    items: int
    before: float
    after: float
    difference: Interval


@dataclass(frozen=True)
class ServedReport:
    """old/old (`before`) and new/h (`after`) in the whole gallery, over the n queries that have a positive in it."""

    n: int
    source: str
    cmc1: Flips
    cmc5: Flips
    average_precision: SampledPrecision | None
    slices: tuple[Slice, ...]
    rules: tuple[Slice, ...]
    minority_gaps: tuple[MinorityGap, ...]


@dataclass(frozen=True)
class JudgedRanks:
    """rows: (n,) which of all queries, in order, have something that they should find; before, after: (n,) the rank of
    the first of it, from 0, and the length of the answers where none has it."""

    rows: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


def judged_ranks(
    asked: Sequence[Queries], answers: tuple[Neighbours, Neighbours], galleries: Galleries
) -> JudgedRanks | None:
    """Return where answers are right; None where no query has a positive. `answers`: of all queries, in order, before
    and after, without their own items."""
    positions = [judged_rows(queries, galleries) for queries in asked]
    rows = np.concatenate([np.empty(0, np.int64), *(s + p for s, p in zip(_starts(asked), positions, strict=True))])
    if not len(rows):
        return None
    return JudgedRanks(rows, *(_first_hits(asked, found.ids, galleries)[rows] for found in answers))


def judge_served(
    asked: Sequence[Queries],
    judged: JudgedRanks,
    galleries: Galleries,
    samples: tuple[tuple[Ids, Vectors], tuple[Ids, Vectors]],
    draws: Draws,
) -> ServedReport:
    """Return the report. `samples`: ids and vectors of items that are no query's own, before and after."""
    chosen = judged.rows
    labels = joined_labels(asked)[chosen]
    attributes = {name: values[chosen] for name, values in _joined_attributes(asked).items()}
    before, after = judged.before < 1, judged.after < 1
    of = np.searchsorted(_starts(asked), chosen, side="right") - 1
    sources = [asked[place].source for place in np.unique(of)]
    return ServedReport(
        len(chosen),
        ", ".join(dict.fromkeys(sources)),
        flips(before, after, labels, draws),
        flips(judged.before < 5, judged.after < 5, labels, draws),
        _precision(asked, chosen, labels, galleries, samples, draws),
        named_slices(attributes, before, after, labels, draws),
        found_rules(attributes, before, after, labels, draws),
        minority_gaps(attributes, before, after),
    )


def judged_rows(queries: Queries, galleries: Galleries) -> NDArray[np.int64]:
    """Return which queries have something that they should find, beside their own item."""
    if queries.relevant is not None:
        relevant = queries.relevant
        return np.flatnonzero([np.any(relevant.of(row) != own) for row, own in enumerate(queries.item_ids)])
    if queries.labels is None or not len(galleries.labels):
        return np.empty(0, np.int64)
    known, counts = np.unique(galleries.labels[galleries.labels != _NO_LABEL], return_counts=True)
    if not len(known):
        return np.empty(0, np.int64)
    place = np.minimum(np.searchsorted(known, queries.labels), len(known) - 1)
    found = np.where(known[place] == queries.labels, counts[place], 0)
    own = _labels_of(queries.item_ids, galleries) == queries.labels
    rows: NDArray[np.int64] = np.flatnonzero((found - own > 0) & (queries.labels != _NO_LABEL))
    return rows


def joined_labels(asked: Sequence[Queries]) -> Labels:
    """Return the labels of all queries, -1 for those without."""
    none = [np.full(len(queries), _NO_LABEL) if queries.labels is None else queries.labels for queries in asked]
    return np.concatenate(none).astype(np.int64)


def _joined_attributes(asked: Sequence[Queries]) -> Mapping[str, NDArray[np.str_]]:
    names = sorted({name for queries in asked for name in queries.attributes})
    return {
        name: np.concatenate(
            [queries.attributes.get(name, np.full(len(queries), "", dtype="<U1")) for queries in asked]
        )
        for name in names
    }


def _starts(asked: Sequence[Queries]) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.cumsum([0, *(len(queries) for queries in asked)])[:-1]
    return starts


def _first_hits(asked: Sequence[Queries], answers: Ids, galleries: Galleries) -> NDArray[np.int64]:
    """(Q, k) answers -> (Q,) the rank of the first that should be found, k where none is."""
    found = np.zeros(answers.shape, bool)
    for start, queries in zip(_starts(asked), asked, strict=True):
        part = slice(start, start + len(queries))
        if queries.relevant is not None:
            found[part] = queries.relevant.contain(answers[part])
        elif queries.labels is not None:
            labels = _labels_of(answers[part], galleries)
            found[part] = (labels == queries.labels[:, None]) & (labels != _NO_LABEL)
    found &= answers != NO_ID
    ranks: NDArray[np.int64] = np.where(found.any(axis=1), found.argmax(axis=1), answers.shape[1])
    return ranks


def _labels_of(ids: Ids, galleries: Galleries) -> Labels:
    """Return the labels of items, -1 for those that have none; the ids of `galleries` ascend."""
    if not len(galleries.item_ids):
        return np.full(ids.shape, _NO_LABEL)
    places = np.minimum(np.searchsorted(galleries.item_ids, ids), len(galleries.item_ids) - 1)
    return np.where(galleries.item_ids[places] == ids, galleries.labels[places], _NO_LABEL)


def ordered(galleries: Galleries) -> Galleries:
    """Return the galleries with `item_ids` ascending."""
    order = np.argsort(galleries.item_ids)
    return replace(galleries, item_ids=galleries.item_ids[order], labels=galleries.labels[order])


def _precision(
    asked: Sequence[Queries],
    chosen: NDArray[np.int64],
    labels: Labels,
    galleries: Galleries,
    samples: tuple[tuple[Ids, Vectors], tuple[Ids, Vectors]],
    draws: Draws,
) -> SampledPrecision | None:
    """Return mAP of the queries with labels, in the items of the sample that have one."""
    by_label = np.concatenate([np.full(len(queries), queries.relevant is None) for queries in asked])[chosen]
    common = np.intersect1d(samples[0][0], samples[1][0])
    common = common[_labels_of(common, galleries) != _NO_LABEL]
    if not by_label.any() or not len(common):
        return None
    item_labels, rows = _labels_of(common, galleries), chosen[by_label]
    found = []
    for name, (ids, vectors) in zip(("before", "after"), samples, strict=True):
        query = np.concatenate([getattr(queries, name) for queries in asked])[rows]
        items = vectors[np.searchsorted(ids, common)]
        scores = query_metrics(query, labels[by_label], items, item_labels, metric=galleries.metric)
        found.append(scores.average_precisions)
    if np.isnan(found[0]).all():
        return None
    difference = score_difference(found[0], found[1], labels[by_label], draws)
    counted = int(np.count_nonzero(~np.isnan(found[0])))
    means = [float(np.nanmean(scores)) for scores in found]
    return SampledPrecision(counted, len(common), means[0], means[1], difference)
