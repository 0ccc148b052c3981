"""Catching up: what was written while an upgrade ran, by revision.

`verified_revision` says how far the next generation is known to be complete. It only grows, and only while no batch is
in flight, so what is left to look at, in a catch-up or in the cutover itself, is what changed since: its size does not
depend on the gallery's.
"""

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from service.domain.batch_state import BatchState
from service.domain.gallery.current_rows import delete_orphans, first_missing_between, items_lacking_current
from service.domain.gallery.generations import GenerationKey, get_stored_generation
from service.domain.upgrade.upgrades import get_upgrade
from service.tables import BatchPhase, Gallery, Upgrade, UpgradeBatch, embeddings_table

_BATCH_BYTES = 12 * 2**20


def unfinished_batches(session: Session, upgrade_id: int) -> int:
    """Return how many batches are not done, in anybody's hands."""
    query = select(func.count()).where(UpgradeBatch.upgrade_id == upgrade_id, UpgradeBatch.state != BatchState.DONE)
    return session.scalar(query) or 0


def verify(session: Session, upgrade_id: int) -> int:
    """Move the verified revision up to the first item that waits; no batch may be in flight (hold the phase lock).

    Return how many changes came after it: what a cutover would look at while writers wait.
    """
    upgrade = get_upgrade(session, upgrade_id)
    # Read first: writes become visible in the order of their revisions, so the next statement sees all up to this one.
    head = session.scalars(select(Gallery.revision).where(Gallery.id == upgrade.gallery_id)).one()
    before, target = upgrade.verified_revision, GenerationKey(upgrade.gallery_id, upgrade.to_generation_id)
    first = first_missing_between(session, target, before, head)
    verified = head if first is None else first - 1
    if verified > before:
        delete_orphans(session, target, before, verified)
        session.execute(update(Upgrade).where(Upgrade.id == upgrade_id).values(verified_revision=verified))
    return head - verified


def plan_catch_up(session: Session, upgrade_id: int, batch_items: int) -> int:
    """Cut the items that have no current row in the next generation into batches; return how many items there are."""
    upgrade = get_upgrade(session, upgrade_id)
    source = items_lacking_current(embeddings_table(upgrade.to_generation_id))
    parameters = {"gallery_id": upgrade.gallery_id, "after": upgrade.verified_revision}
    return insert_batches(session, upgrade, "catching_up", batch_items, source, parameters)


def insert_batches(
    session: Session, upgrade: Upgrade, phase: BatchPhase, batch_items: int, source: str, parameters: dict[str, int]
) -> int:
    """Cut the items of `source` (SQL that follows FROM and has a column `id`) into batches; return how many items.

    A batch has at most `batch_items` of them, and fewer where rows are wide, so that a worker's memory does not grow
    with the dimensions.
    """
    generation_ids = [upgrade.to_generation_id, *(leg.generation_id for leg in upgrade.legs)]
    formats = [get_stored_generation(session, upgrade.gallery_id, id_).vector_format for id_ in generation_ids]
    widest = max(vector_format.row_dtype.itemsize for vector_format in formats)
    batch_items = max(1, min(batch_items, _BATCH_BYTES // widest))
    planned = session.execute(
        text(
            "INSERT INTO upgrade_batches (upgrade_id, phase, first_item_id, last_item_id, items)"
            " SELECT :upgrade_id, :phase, min(id), max(id), count(*)"
            " FROM (SELECT id, (row_number() OVER (ORDER BY id) - 1) / :batch_items AS batch"
            f" FROM {source}) AS numbered GROUP BY batch ORDER BY batch RETURNING items"
        ),
        {"upgrade_id": upgrade.id, "phase": phase, "batch_items": batch_items, **parameters},
    )
    return sum(planned.scalars())
