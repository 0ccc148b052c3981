"""Smoothing a next generation: each row that h made moves towards the mean of its nearest rows.

It is asked for when the upgrade is; nothing is smoothed otherwise. The steps:
1. when the generation's index is built, cut the rows that h made into batches, as of the index's revision R (the change
   of state and the batches in one transaction);
2. work on each batch as on those of the main pass: read its rows, find their neighbours in the index, which has all
   rows as h made them, and write them back in the transaction that marks the batch done (crash point `batch.smoothed`).
   So no row is smoothed twice, and none by neighbours that are smoothed already, in whatever order batches run;
3. when all are done, build the index again, of the rows as they are now.
A row that a writer replaced meanwhile is left alone, and so is one that h makes after R.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.crash_points import crash_point
from service.db import driver_connection
from service.domain.gallery.current_rows import current_rows_query
from service.domain.gallery.generations import StoredGeneration, get_stored_generation, stage_embeddings
from service.domain.indexes.engine import SmoothingNotPossible
from service.domain.upgrade.batches import ItemRange
from service.domain.upgrade.catch_up import insert_batches
from service.domain.upgrade.upgrades import change_state, get_upgrade
from service.domain.upgrade_state import Action
from service.index.protocol import Metric, Vectors
from service.index.smoothing import Neighbourhoods
from service.json_records import JsonRecord
from service.metrics import UPGRADE_BATCH_SECONDS
from service.tables import Generation, Upgrade
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, Origin, VectorFormat
from service.vectors.storing import NotStorable, to_storage

_INDEX_CHANGED = (
    "The index of the next generation was built anew while its rows were smoothed by the one before, as an erasure"
    " does. Cancel the upgrade, and start it again."
)


@dataclass(frozen=True)
class Smoothing(JsonRecord):
    """Each row becomes (1 - share) of itself and `share` of the mean of its `neighbors` nearest rows."""

    share: float
    neighbors: int


def smoothing_of(upgrade: Upgrade) -> Smoothing | None:
    """Return how the upgrade's rows are to be smoothed; None: not at all."""
    return None if upgrade.smoothing is None else Smoothing.from_json(upgrade.smoothing)


def waits_for_smoothing(upgrade: Upgrade) -> bool:
    """Return whether the rows are to be smoothed, and no batch for that is planned yet."""
    return upgrade.smoothing is not None and upgrade.smoothed_revision is None


def plan_smoothing(session: Session, upgrade_id: int, batch_items: int) -> None:
    """Do step 1. The phase is held, and the generation's index is built."""
    upgrade = get_upgrade(session, upgrade_id)
    generation = session.get_one(Generation, upgrade.to_generation_id)
    values = {"smoothed_revision": generation.index_revision, "smoothed_index": generation.index_sha256}
    upgrade = change_state(session, upgrade_id, Action.SMOOTH, **values)
    target = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)
    source = f"(SELECT item_id AS id FROM {target.table} WHERE {_FROM_H} AND revision <= :revision) AS made_by_h"
    insert_batches(session, upgrade, "smoothing", batch_items, source, {"revision": upgrade.smoothed_revision or 0})


def check_index(session: Session, upgrade: Upgrade) -> None:
    """Raise `SmoothingNotPossible` (409) unless the generation has the index that its batches were planned with."""
    if session.get_one(Generation, upgrade.to_generation_id).index_sha256 != upgrade.smoothed_index:
        raise SmoothingNotPossible(_INDEX_CHANGED)


def smooth_items(session: Session, upgrade: Upgrade, items: ItemRange, neighbourhoods: Neighbourhoods) -> int:
    """Do step 2 for the range's rows that h made; return how many were written."""
    smoothing = smoothing_of(upgrade)
    assert smoothing is not None
    target = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)
    vector_format = VectorFormat(target.vector_format.embedding_dim, None, target.vector_format.dtype)

    with UPGRADE_BATCH_SECONDS.labels("read").time():
        rows = _rows_to_smooth(session, target, vector_format, items, upgrade.smoothed_revision or 0)
    if rows is None:
        return 0

    with UPGRADE_BATCH_SECONDS.labels("smooth").time():
        own = rows.embedding.astype(np.float32)
        means = neighbourhoods.means(rows.item_id, own, smoothing.neighbors)
        mixed = smoothed(own, means, smoothing.share, target.metric, normalize=target.version.normalize)
        rows.embedding = _stored(mixed, own, target.vector_format)
    with UPGRADE_BATCH_SECONDS.labels("write").time():
        written = _replace(session, target, vector_format, rows, f"smoothed_{target.id}_{items.first}")
    crash_point("batch.smoothed")
    return written


def smoothed(own: Vectors, means: Vectors, share: float, metric: Metric, *, normalize: bool) -> Vectors:
    """Return (N, D) float32: `own` rows (N, D) moved towards the `means` (N, D) of their neighbours, which are of unit
    norm where the metric is cosine. With `normalize` they have unit norm. A row without neighbours, whose mean is NaN,
    stays as it is."""
    scale = np.linalg.norm(own, axis=1, keepdims=True) if metric == "cosine" else np.float32(1)
    mixed = np.where(np.isnan(means), own, (1 - share) * own + share * scale * means)
    if normalize:
        norms = np.linalg.norm(mixed, axis=1, keepdims=True)
        mixed = mixed / np.where(norms == 0, 1, norms)
    result: Vectors = mixed.astype(np.float32)
    return result


def _stored(mixed: Vectors, own: Vectors, wanted: VectorFormat) -> Any:
    """Return (N, D) vectors in the stored dtype: those of `own` where `mixed` cannot be stored, as a row that its
    neighbours cancel."""
    try:
        return to_storage(mixed, wanted.dtype, needs_direction=wanted.needs_direction)
    except NotStorable as error:
        mixed[error.rows] = own[error.rows]
        return mixed.astype(np.float16 if wanted.dtype == "float16" else np.float32)


_FROM_H = f"origin = {int(Origin.TRANSFORMED)}"


def _rows_to_smooth(
    session: Session, target: StoredGeneration, vector_format: VectorFormat, items: ItemRange, up_to_revision: int
) -> EmbeddingRows | None:
    within = f"BETWEEN {int(items.first)} AND {int(items.last)}"
    where = f"e.item_id {within} AND i.id {within} AND e.{_FROM_H} AND e.revision <= %s"
    query = current_rows_query(target, vector_format, where)
    chunks = list(read_rows(driver_connection(session), query, (up_to_revision,), vector_format))
    return EmbeddingRows.concatenate(chunks) if chunks else None


def _replace(
    session: Session, target: StoredGeneration, vector_format: VectorFormat, rows: EmbeddingRows, staging: str
) -> int:
    """Write the embeddings of rows that are still there as they were read, and return how many."""
    stage_embeddings(session, staging, rows, vector_format)
    # In the order in which writers lock rows, so that none of them waits for another in a circle.
    held = f"SELECT FROM {target.table} e JOIN {staging} s USING (item_id) ORDER BY e.item_id FOR UPDATE OF e"
    session.execute(text(held))
    written = session.execute(
        text(
            f"UPDATE {target.table} e SET embedding = s.embedding FROM {staging} s WHERE e.item_id = s.item_id"
            f" AND e.revision = s.revision AND e.{_FROM_H} RETURNING 1"
        )
    )
    return len(written.all())
