"""The tasks, by the names in `service.queue`."""

from collections.abc import Callable, Sequence

from celery import Task
from celery.signals import task_prerun

from service.logs import NO_REQUEST, about, about_nothing, request_id
from service.queue import (
    ADVANCE_BACKFILL,
    ADVANCE_ERASURE,
    ADVANCE_EXTERNAL,
    ADVANCE_INGEST,
    ADVANCE_RESTING_UPGRADE,
    ADVANCE_TRAINING,
    ADVANCE_UPGRADE,
    BUILD_INDEX,
)
from workers.app import WorkerParts, app, worker_parts
from workers.backfilling import advance_backfill
from workers.connecting import advance_external
from workers.erasing import advance_an_erasure
from workers.ingesting import advance_ingest
from workers.rebuilding import rebuild_index
from workers.training import advance_training
from workers.upgrading import advance_upgrade


@app.task(name=ADVANCE_UPGRADE)
def advance(upgrade_id: int) -> None:
    """Work on an upgrade for one time slice, and ask for the next one.

    Safe to run twice: batches are claimed from rows and marked in the transaction that writes them, and every change
    of state is guarded by the state that it leaves.
    """
    _work(advance_upgrade, upgrade_id)


@app.task(name=ADVANCE_RESTING_UPGRADE)
def advance_resting(upgrade_id: int) -> None:
    """Do as `advance` does, in a message that comes after everything that does not rest.

    Safe to run twice as that is.
    """
    _work(advance_upgrade, upgrade_id)


@app.task(name=ADVANCE_TRAINING)
def advance_a_training(job_id: int) -> None:
    """Work on a training for one time slice, and ask for the next one: upgrades get their turn before it.

    Safe to run twice: one worker at a time holds the training's lock, files have their names only when they are whole,
    and the transformation is registered in the transaction that ends the job.
    """
    _work(lambda parts, id_: ADVANCE_TRAINING if advance_training(parts, id_) else None, job_id)


@app.task(name=ADVANCE_BACKFILL)
def advance_a_backfill(backfill_id: int) -> None:
    """Work on a backfill for one time slice, and ask for the next one.

    Safe to run twice: items are claimed from rows and marked in the transaction that writes their embeddings, and an
    item's row is only replaced while it is still h's.
    """
    _work(lambda parts, id_: ADVANCE_BACKFILL if advance_backfill(parts, id_) else None, backfill_id)


@app.task(name=ADVANCE_EXTERNAL)
def advance_an_external_upgrade(upgrade_id: int) -> None:
    """Work on an upgrade of another store for one time slice, and ask for the next one.

    Safe to run twice: ranges are claimed from rows, writing one again has the same effect, and every change of state is
    guarded by the state that it leaves.
    """
    _work(lambda parts, id_: ADVANCE_EXTERNAL if advance_external(parts, id_) else None, upgrade_id)


@app.task(name=ADVANCE_INGEST)
def advance_an_ingest(job_id: int) -> None:
    """Work on an ingest by reference for one time slice, and ask for the next one.

    Safe to run twice: batches are claimed from rows, and marked in the transaction that writes their items.
    """
    _work(lambda parts, id_: ADVANCE_INGEST if advance_ingest(parts, id_) else None, job_id)


@app.task(name=ADVANCE_ERASURE)
def advance_erasure(job_id: int) -> None:
    """Work on an erasure for one time slice, and ask for the next one.

    Safe to run twice: one worker at a time holds the erasure's lock, and each step is counted in the transaction that
    takes it, or finds what an earlier try left.
    """
    _work(lambda parts, id_: ADVANCE_ERASURE if advance_an_erasure(parts, id_) else None, job_id)


@app.task(name=BUILD_INDEX)
def build_index(generation_id: int) -> None:
    """Build a new index for a generation.

    Safe to run twice: one worker rebuilds at a time, and it asks the rows first whether the build is still due.
    """
    _work(lambda parts, id_: BUILD_INDEX if rebuild_index(parts, id_) else None, generation_id)


_SUBJECTS = {
    ADVANCE_UPGRADE: "upgrade_id",
    ADVANCE_RESTING_UPGRADE: "upgrade_id",
    ADVANCE_TRAINING: "job_id",
    ADVANCE_INGEST: "job_id",
    ADVANCE_BACKFILL: "backfill_id",
    ADVANCE_ERASURE: "job_id",
    ADVANCE_EXTERNAL: "external_id",
    BUILD_INDEX: "generation_id",
}


@task_prerun.connect
def _name_request(task: Task, args: Sequence[int], **_: object) -> None:
    """Log under the id of the request that asked for the work; the next time slice is asked for under it too."""
    request_id.set(task.request.get("request_id") or NO_REQUEST)
    about_nothing()
    about(**{_SUBJECTS[task.name]: args[0]})


def _work(advance_one: Callable[[WorkerParts, int], str | None], row_id: int) -> None:
    """Work on one row, and send the message that goes on with it, if there is one."""
    parts = worker_parts()
    parts.working.set()
    try:
        next_task = advance_one(parts, row_id)
        if next_task is not None:
            parts.database.queue.send(next_task, row_id)
    finally:
        parts.working.clear()
