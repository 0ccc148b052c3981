"""The measurements of an upgrade: both galleries are read once, and everything is computed from what was kept of them.

The same evidence and seed give the same report, whatever the chunks and threads: `to_json` gives the same bytes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from models.judging.evidence import Answers, Evidence, Galleries, Queries, References
from models.judging.examples import NO_EXAMPLES, Examples, choose_examples
from models.judging.intervals import DRAWS, Draws, Interval, hit_difference
from models.judging.rankings import hubness, occurrences, overlap, own_first, rank_biased_overlap
from models.judging.references import OwnItem, ReferencesReport, judge_references, own_item, paired_distances
from models.judging.search import NO_ID, Chunks, Ids, NearestItems, Neighbours
from models.judging.served import ServedReport, judge_served, judged_ranks, ordered
from models.judging.spaces import (
    ItemSample,
    SpaceCheck,
    SpaceReport,
    Threshold,
    pair_distances,
    thresholds,
)
from models.metrics import Metric, Vectors

_K = 10
_PAIRED_QUERIES, _PAIRED_ITEMS = 1_000, 2_000


@dataclass(frozen=True)
class Reading:
    """How evidence is read. sample_items: of the gallery, for mAP and thresholds."""

    draws: Draws = DRAWS
    sample_items: int = 5_000


READING = Reading()


@dataclass(frozen=True)
class OwnItems:
    """How often references find their own items in the whole gallery: h, the linear map, and doing nothing (old/old).
    The difference is h's less the linear map's at rank 1; None where the linear map was not applied to the gallery."""

    h: OwnItem
    linear: OwnItem | None
    nothing: OwnItem
    above_linear: Interval | None


@dataclass(frozen=True)
class Churn:
    """How alike the answers of both generations are, on n queries: of good upgrades too, three of four change."""

    n: int
    overlap: float
    rank_biased_overlap: float


@dataclass(frozen=True)
class Hubs:
    """The skewness of how often items are answered, and the share of all answers that the ten largest hubs take."""

    skewness: float
    share_of_ten: float


@dataclass(frozen=True)
class Spaces:
    """pairs: distances that let certain shares of random pairs of query and item pass, in both spaces; nearest: the
    same of queries and their nearest items."""

    before: SpaceReport
    after: SpaceReport
    hubs_before: Hubs | None
    hubs_after: Hubs | None
    pairs: tuple[Threshold, ...]
    nearest: tuple[Threshold, ...]


@dataclass(frozen=True)
class Measurements:
    """What was measured. churn_of_queries: of the queries here, which no user asked; churn: of shadowed ones."""

    references: ReferencesReport | None
    own_items: OwnItems | None
    served: ServedReport | None
    churn: Churn | None
    churn_of_queries: Churn | None
    spaces: Spaces
    examples: Examples = NO_EXAMPLES


@dataclass(frozen=True)
class _Read:
    """What is kept of a gallery that was read: (Q, 10) nearest others of each query, a sample of items, its space."""

    nearest: Neighbours
    sample: tuple[Ids, Vectors]
    space: SpaceReport


def measure(evidence: Evidence, reading: Reading = READING) -> Measurements:
    """Read the galleries, and return what the evidence tells. Raises ValueError for queries that are not
    finite, and for a single reference."""
    galleries, references = ordered(evidence.galleries), evidence.references
    asked = [part for part in (references and references.queries, *evidence.queries) if part]
    before = _read(asked, "before", galleries.before, galleries.metric, reading)
    after = _read(asked, "after", galleries.after, galleries.metric, reading)
    answers = before.nearest, after.nearest
    judged = judged_ranks(asked, answers, galleries)
    return Measurements(
        judge_references(references, galleries.metric, reading.draws) if references else None,
        _own_items(references, before.nearest, after.nearest, galleries, reading.draws) if references else None,
        judge_served(asked, judged, galleries, (before.sample, after.sample), reading.draws) if judged else None,
        _churn(evidence.shadowed) if evidence.shadowed else None,
        _churn(Answers(before.nearest.ids, after.nearest.ids)) if asked else None,
        _spaces(asked, before, after, evidence, reading),
        choose_examples(asked, answers, judged, references.uncertainty if references else None),
    )


def _read(asked: Sequence[Queries], name: str, chunks: Chunks, metric: Metric, reading: Reading) -> _Read:
    """Read one gallery; `name` is the column of the queries that asks it."""
    target = np.concatenate([getattr(queries, name) for queries in asked]) if asked else None
    own = np.concatenate([queries.item_ids for queries in asked]) if asked else np.empty(0, np.int64)
    search = None if target is None else NearestItems(target, _K, metric, own)
    space, sample = SpaceCheck(), ItemSample(reading.sample_items, reading.draws.seed, own)
    for ids, vectors in chunks:
        if search is not None:
            search.add(ids, vectors)
        space.add(vectors)
        sample.add(ids, vectors)
    nothing = Neighbours(np.empty((0, _K), np.int64), np.empty((0, _K), np.float32))
    return _Read(nothing if search is None else search.found(), sample.drawn(), space.report(target))


def _own_items(
    references: References, before: Neighbours, after: Neighbours, galleries: Galleries, draws: Draws
) -> OwnItems:
    """`before`, `after`: the nearest others of all queries, of which the references are the first."""
    queries, count, metric = references.queries, len(references), galleries.metric
    ids = queries.item_ids

    def distances(items: Vectors) -> Vectors:
        return paired_distances(queries.after, items, metric)

    own, others = distances(references.transformed), after.rows(count)
    nothing = own_item(paired_distances(queries.before, queries.before, metric), ids, before.rows(count))
    linear = above = None
    if references.linear is not None and galleries.linear is not None:
        search = NearestItems(queries.after, _K, metric, ids)
        for item_ids, vectors in galleries.linear:
            search.add(item_ids, vectors)
        linear_own, linear_others = distances(references.linear), search.found()
        linear = own_item(linear_own, ids, linear_others)
        firsts = [own_first(*pair, 1) for pair in ((linear_own, ids, linear_others), (own, ids, others))]
        above = hit_difference(firsts[0], firsts[1], queries.labels, draws)
    return OwnItems(own_item(own, ids, others), linear, nothing, above)


def _churn(answers: Answers) -> Churn:
    alike = overlap(answers.before, answers.after), rank_biased_overlap(answers.before, answers.after)
    return Churn(len(answers.before), float(alike[0].mean()), float(alike[1].mean()))


def _hubs(read: _Read) -> Hubs | None:
    answers, items = read.nearest.ids, read.space.items
    if not (answers != NO_ID).any():
        return None
    counts = occurrences(answers, items)
    return Hubs(hubness(answers, items), float(counts[:10].sum()) / float(counts.sum()))


def _spaces(asked: Sequence[Queries], before: _Read, after: _Read, evidence: Evidence, reading: Reading) -> Spaces:
    metric = evidence.galleries.metric
    pairs: tuple[Threshold, ...] = ()
    nearest: tuple[Threshold, ...] = ()
    common = np.intersect1d(before.sample[0], after.sample[0])[:_PAIRED_ITEMS]
    if asked and len(common):
        drawn = np.random.default_rng(reading.draws.seed).permutation(sum(map(len, asked)))[:_PAIRED_QUERIES]
        old, new = (
            pair_distances(
                np.concatenate([getattr(queries, name) for queries in asked])[drawn],
                read.sample[1][np.searchsorted(read.sample[0], common)],
                metric,
            )
            for name, read in (("before", before), ("after", after))
        )
        pairs = thresholds(old, new)
        answered = np.isfinite(before.nearest.distances[:, 0]) & np.isfinite(after.nearest.distances[:, 0])
        nearest = thresholds(*(np.sort(read.nearest.distances[answered, 0].astype(float)) for read in (before, after)))
    return Spaces(before.space, after.space, _hubs(before), _hubs(after), pairs, nearest)


def to_json(record: Any) -> bytes:
    """Return a record of dataclasses as JSON: keys in order, numbers to nine digits, null for what is not finite."""
    return json.dumps(_plain(asdict(record)), sort_keys=True, allow_nan=False, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
