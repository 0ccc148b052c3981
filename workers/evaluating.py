"""Evaluating an upgrade: its evidence is encoded where it is images, read, and judged, and a report is made of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from typing import TypeVar

from models.judging.evidence import Answers, Evidence, Galleries, Queries, References, RelevantItems
from models.judging.intervals import Draws
from models.judging.report import Reading, to_json
from service.db import Session
from service.domain.judging.asked_queries import SOURCE, AskedSets, asked_queries, encode_queries
from service.domain.judging.evidence import (
    GalleryRows,
    JudgedItems,
    gallery_rows,
    judged_items,
    read_common_rows,
    read_common_vectors,
)
from service.domain.judging.probe_references import encode_probe_images
from service.domain.judging.reports import NewReport, rules_of
from service.domain.judging.shadowed_queries import ShadowedAnswers, shadowed_answers
from service.index.protocol import Ids, Vectors
from service.networks.encoders import Encoders
from service.tables import Upgrade
from workers.app import WorkerParts, all_cores
from workers.judging import Judging, Known, judge
from workers.linear_floor import linear_floor

_ROWS_AT_ONCE = 16_384
_LEAST_NEIGHBOURS = 2
_Chunk = TypeVar("_Chunk")


def evaluate(parts: WorkerParts, upgrade: Upgrade, seed: int) -> NewReport:
    """Return a report on an upgrade's next generation: the same for the same rows and seed. Writes nothing but what
    both versions make of query images and of probe images.

    All is read in one snapshot, so that both generations have the same items. Memory holds the evidence, a sample of
    the gallery, and of the rest some 30 bytes an item.
    """
    began = time.monotonic()
    most = parts.settings.evaluation_sample_items
    with all_cores(parts.settings):
        # Not the worker's own: encoders are in memory only while there is something to encode.
        encoders = Encoders(parts.blobs, parts.settings)
        encode_probe_images(parts.database, encoders, upgrade)
        encode_queries(parts.database, parts.blobs, encoders, upgrade, most, seed)
        del encoders
        with parts.database.session_scope(snapshot=True) as session:
            gallery = gallery_rows(session, upgrade)
            items = judged_items(session, upgrade, gallery, most, seed, parts.networks.transform)
            asked = asked_queries(session, upgrade, gallery, items, most, seed)
            shadowed = shadowed_answers(session, upgrade)
            evidence = _evidence(session, parts, upgrade, gallery, items, seed)
            evidence = replace(evidence, queries=_queries(asked), shadowed=_answers(shadowed))
            report = judge(evidence, _judging(upgrade, gallery, items, asked, seed, most))
    return NewReport(
        verdict=report.verdict,
        revision=gallery.revision,
        evidence=len(asked) + (0 if items is None else len(items)),
        content=to_json(report).decode(),
        seconds=time.monotonic() - began,
    )


def _evidence(
    session: Session, parts: WorkerParts, upgrade: Upgrade, gallery: GalleryRows, items: JudgedItems | None, seed: int
) -> Evidence:
    """Return what there is. The linear map that h is compared with is the better one of two: the one that stands beside
    it in its artifact, and one that is fitted on the references, each answered by a map that was fitted on others."""
    before, after = (
        _read_ahead(read_common_vectors(session, generation, gallery, _ROWS_AT_ONCE))
        for generation in (gallery.before, gallery.after)
    )
    galleries = Galleries(
        metric=gallery.after.metric,
        before=before,
        after=after,
        item_ids=gallery.labelled_ids,
        labels=gallery.labels,
    )
    if items is None or len(items) < _LEAST_NEIGHBOURS:
        return Evidence(galleries)

    queries = Queries(
        before=items.before,
        after=items.after,
        item_ids=items.ids,
        source=items.source,
        labels=items.labels,
        attributes=items.attributes,
    )
    version, metric = gallery.after.version, gallery.after.metric
    floor = linear_floor(parts, items.rows, items.after, upgrade.legs[0].transformation_ids, version, metric, seed)
    linear = floor.vectors
    if floor.stands_beside_h:
        galleries = replace(galleries, linear=_linear_rows(session, parts, upgrade, gallery))
    return Evidence(galleries, References(queries, items.transformed, linear, items.uncertainty))


def _queries(asked: AskedSets) -> tuple[Queries, ...]:
    return tuple(
        Queries(
            before=part.before,
            after=part.after,
            item_ids=part.item_ids,
            source=SOURCE,
            labels=part.labels,
            relevant=None if part.relevant is None else RelevantItems(*part.relevant),
            attributes=part.attributes,
        )
        for part in asked.parts
    )


def _answers(shadowed: ShadowedAnswers | None) -> Answers | None:
    return None if shadowed is None else Answers(shadowed.before, shadowed.after)


def _linear_rows(
    session: Session, parts: WorkerParts, upgrade: Upgrade, gallery: GalleryRows
) -> Iterator[tuple[Ids, Vectors]]:
    """Give what the linear map would make of the whole gallery."""
    for rows in _read_ahead(read_common_rows(session, gallery.read, gallery, _ROWS_AT_ONCE)):
        found = parts.networks.linear(rows, upgrade.legs[0].transformation_ids)
        assert found is not None
        yield rows.item_id, found


def _read_ahead(chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
    """Give the chunks; while one is in use, a thread reads the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = thread.submit(next, chunks, None)
            yield chunk


def _judging(
    upgrade: Upgrade, gallery: GalleryRows, items: JudgedItems | None, asked: AskedSets, seed: int, most: int
) -> Judging:
    known = Known(
        items=gallery.items,
        items_waiting=gallery.items_waiting,
        other_leg_items=gallery.other_leg_items,
        ann_recall=gallery.recall,
        recall_sample_size=gallery.recall_sample,
        recall_source="the index's own sample",
    )
    about: dict[str, str | int | float] = {
        "code_version": version("gallery-upgrade"),
        "revision": gallery.revision,
        "most_evidence": most,
        "references": 0 if items is None else items.references,
        "ingested": 0 if items is None else items.ingested,
        "networks": " ".join(gallery.networks),
    }
    rules, held_out = tuple(rules_of(upgrade)), tuple(gallery.held_out)
    return Judging(known, gallery.task, rules, Reading(Draws(seed)), about, asked.sets, held_out)
