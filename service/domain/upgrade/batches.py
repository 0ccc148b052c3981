"""The batches of an upgrade: ranges of item ids, claimed from rows, each one transaction of work.

The steps, the last two in one transaction, with their crash points and what a crash there leaves:
1. claim a batch, in a short transaction that counts the attempt (`batch.claimed`): the claim, which the next claimer
   takes over when its lease has ended;
2. lock the batch's row, read, transform and write (`batch.transformed`, `batch.staged` where rows met others,
   `batch.written`): the same, since the transaction is gone;
3. mark the batch done; the caller commits (`batch.committed`): the rows and the `done` mark together.
The row lock says that the worker lives: it ends with the worker's connection. The lease only covers the moment between
the two transactions.

A batch that fails is tried again after a pause that doubles with every attempt. One with rows that cannot be
transformed or stored (`service.networks.transformations.PoisonedItems`) is not: it waits, with their names, until the
others are done. Then the upgrade fails and names them all, so that whoever mends them retries once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from psycopg.errors import UniqueViolation
from sqlalchemy import func, text
from sqlalchemy.orm import Session

from service import logs
from service.crash_points import crash_point
from service.db import Database, driver_connection
from service.domain.batch_state import BatchAction
from service.domain.claims import (
    Claim,
    change_rows,
    claim_rows,
    finish_claim,
    lock_claimed,
    lose_when_frozen,
    return_claim,
)
from service.domain.gallery.current_rows import current_rows_query, is_current, lacks_current
from service.domain.gallery.generations import (
    StoredGeneration,
    columns_of,
    get_stored_generation,
    stage_embeddings,
    upsert_clause,
)
from service.domain.refused_rows import RefusedItem, RefusedItems
from service.domain.upgrade.catch_up import insert_batches
from service.domain.upgrade.upgrades import NAMED_ITEMS, change_state, lock_state
from service.domain.upgrade_state import Action, State
from service.metrics import UPGRADE_BATCH_SECONDS, UPGRADE_ROWS
from service.tables import BatchPhase, Upgrade, UpgradeBatch
from service.vectors.copy import read_rows, write_rows
from service.vectors.rows import EmbeddingRows, Origin, VectorFormat

events = logs.Events(__name__)

TRANSFORMABLE = frozenset({State.TRANSFORMING, State.READY})
_WORKED_ON_IN: dict[BatchPhase, frozenset[State]] = {
    "transforming": TRANSFORMABLE,
    "catching_up": TRANSFORMABLE,
    "smoothing": frozenset({State.SMOOTHING}),
}


@dataclass(frozen=True)
class ItemRange:
    """Items with ids from `first` to `last`, both included, that changed after a revision."""

    first: int
    last: int
    after_revision: int = 0


# (rows of the leg's generation, the format of the rows to give, transformation ids) -> those rows.
Transform = Callable[[EmbeddingRows, VectorFormat, tuple[int, ...]], EmbeddingRows]
# What is done with a batch's items, in the transaction that is given; it returns how many rows it wrote.
Work = Callable[[Session, Upgrade, ItemRange], int]


def plan_batches(session: Session, upgrade_id: int, batch_items: int) -> None:
    """Cut the items of the start revision into batches and start transforming."""
    upgrade = change_state(session, upgrade_id, Action.START, batches_planned_at=func.now())
    source = "items WHERE gallery_id = :gallery_id AND deleted_at IS NULL AND revision <= :start_revision"
    parameters = {"gallery_id": upgrade.gallery_id, "start_revision": upgrade.start_revision}
    insert_batches(session, upgrade, "transforming", batch_items, source, parameters)


def claim_batch(database: Database, upgrade_id: int, lease_seconds: float) -> Claim[UpgradeBatch] | None:
    """Claim a batch that is pending, or whose claimer is gone; None when there is none to take.

    Committed at once, so that an attempt counts even if it kills the worker.
    """
    # 1.
    with database.session_scope() as session:
        wanted = (UpgradeBatch.upgrade_id == upgrade_id) & UpgradeBatch.refused.is_(None)
        claim = claim_rows(session, UpgradeBatch, wanted, UpgradeBatch.id, 1, lease_seconds)
    if claim is not None:
        crash_point("batch.claimed")
    return claim


def work_on_batch(session: Session, claim: Claim[UpgradeBatch], work: Work) -> int | None:
    """Work on a claimed batch and mark it done, in the session's one transaction; return the rows written.

    None when there is nothing to do any more: the upgrade was paused or ended, or the claim was taken over.
    """
    lose_when_frozen(session)

    # 2.
    upgrade = lock_state(session, claim.row.upgrade_id, shared=True)
    if not lock_claimed(session, claim):
        return None
    batch = claim.row
    if upgrade.state not in _WORKED_ON_IN[batch.phase]:
        return_claim(session, claim)  # nothing was tried: it waits for a resume as if it had not been claimed
        return None
    rows = work(session, upgrade, ItemRange(batch.first_item_id, batch.last_item_id))

    # 3.
    if not finish_claim(session, claim, rows=rows):
        raise RuntimeError(f"Batch {batch.id} left its claim while its row was locked.")
    events.info("upgrade.batch_recorded", upgrade_id=upgrade.id, batch_id=batch.id, items=rows)
    return rows


def set_aside(session: Session, claim: Claim[UpgradeBatch], reasons: dict[int, str]) -> None:
    """Give a claim back because of items that cannot be upgraded, for reasons by their ids; it is not claimed again
    before a retry of the upgrade."""
    first = tuple(RefusedItem(item_id, reasons[item_id]) for item_id in sorted(reasons)[:NAMED_ITEMS])
    refused = RefusedItems(len(reasons), first)
    change_rows(session, UpgradeBatch, claim.holds(), BatchAction.RELEASE, refused=refused)
    events.warning("upgrade.items_refused", upgrade_id=claim.row.upgrade_id, batch_id=claim.row.id, items=len(reasons))


def transform_items(session: Session, upgrade: Upgrade, items: ItemRange, transform: Transform) -> int:
    """Make a current row in the next generation for every item of the range that lacks one; return how many.

    Rows that are current there (encoded from pixels, or transformed by an earlier run) are not read and never
    overwritten, so running twice has the effect of running once.
    """
    target = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)
    sources = [get_stored_generation(session, upgrade.gallery_id, leg.generation_id) for leg in upgrade.legs]

    written = 0
    for number, leg in enumerate(upgrade.legs):
        with UPGRADE_BATCH_SECONDS.labels("read").time():
            rows = _rows_to_transform(session, sources[: number + 1], target, items)
        if rows is None:
            continue

        with UPGRADE_BATCH_SECONDS.labels("transform").time():
            transformed = transform(rows, target.vector_format, leg.transformation_ids)
        crash_point("batch.transformed")
        transformed.origin = np.full(len(transformed), Origin.TRANSFORMED, np.int16)
        with UPGRADE_BATCH_SECONDS.labels("write").time():
            written += _write(session, target, transformed, f"staging_{target.id}_{items.first}_{number}")
        crash_point("batch.written")

    UPGRADE_ROWS.inc(written)
    return written


def _write(session: Session, target: StoredGeneration, rows: EmbeddingRows, staging: str) -> int:
    """Add rows to a generation, and return how many.

    They are copied into its table. Where that meets a row of one of the items (an older one, or one that a writer was
    faster with), they go through a temporary table, from which only what is current and newer is taken.
    """
    try:
        with session.begin_nested():
            return write_rows(driver_connection(session), target.table, rows, target.vector_format)
    except UniqueViolation:
        events.info("upgrade.rows_met", generation_id=target.id, items=len(rows))

    stage_embeddings(session, staging, rows, target.vector_format)
    crash_point("batch.staged")

    columns = columns_of(target.vector_format)
    inserted = session.scalar(
        text(
            f"WITH inserted AS (INSERT INTO {target.table} (item_id, revision, {columns})"
            f" SELECT s.item_id, s.revision, {columns} FROM {staging} s"
            f" JOIN items i ON {is_current('s')}"
            " WHERE i.id BETWEEN :first AND :last"
            f" ORDER BY s.item_id {upsert_clause(target.table, target.vector_format)} RETURNING 1)"
            " SELECT count(*) FROM inserted"
        ),
        {"first": int(rows.item_id[0]), "last": int(rows.item_id[-1])},
    )
    return inserted or 0


def _rows_to_transform(
    session: Session, sources: Sequence[StoredGeneration], target: StoredGeneration, items: ItemRange
) -> EmbeddingRows | None:
    """Return the rows to transform from the last of `sources`: of items without a current row in the target, or in a
    source before it. None when there are none.

    So every item takes the first leg that it can. One that was written to an earlier leg's generation after that leg
    had been read is left to the catch-up.
    """
    *earlier, source = sources

    # The range of ids is said of each table: PostgreSQL does not conclude it, and would read the others from the start.
    within = f"BETWEEN {int(items.first)} AND {int(items.last)}"
    lacking = " AND ".join(lacks_current(stored.table, within=f"c.item_id {within}") for stored in (target, *earlier))
    where = f"e.item_id {within} AND i.id {within} AND i.gallery_id = %s AND i.revision > %s AND {lacking}"

    query = current_rows_query(source, source.vector_format, where)
    parameters = (target.gallery_id, items.after_revision)
    chunks = list(read_rows(driver_connection(session), query, parameters, source.vector_format))
    return EmbeddingRows.concatenate(chunks) if chunks else None
