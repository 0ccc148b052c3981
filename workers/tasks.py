"""The tasks, by the names in `service.queue`."""

from collections.abc import Callable

from celery import Task
from celery.signals import task_prerun

from service.logs import NO_REQUEST, request_id
from service.queue import ADVANCE_TRAINING, ADVANCE_UPGRADE, BUILD_INDEX
from workers.app import WorkerParts, app, worker_parts
from workers.rebuilding import rebuild_index
from workers.training import advance_training
from workers.upgrading import advance_upgrade


@app.task(name=ADVANCE_UPGRADE)
def advance(upgrade_id: int) -> None:
    """Work on an upgrade for one time slice, and ask for the next one.

    Safe to run twice: batches are claimed from rows and marked in the transaction that writes them, and every change
    of state is guarded by the state that it leaves.
    """
    _work(ADVANCE_UPGRADE, advance_upgrade, upgrade_id)


@app.task(name=ADVANCE_TRAINING)
def advance_a_training(job_id: int) -> None:
    """Work on a training for one time slice, and ask for the next one: upgrades get their turn in between.

    Safe to run twice: one worker at a time holds the training's lock, files have their names only when they are whole,
    and the transformation is registered in the transaction that ends the job.
    """
    _work(ADVANCE_TRAINING, advance_training, job_id)


@app.task(name=BUILD_INDEX)
def build_index(generation_id: int) -> None:
    """Build a new index for a generation.

    Safe to run twice: one worker rebuilds at a time, and it asks the rows first whether the build is still due.
    """
    _work(BUILD_INDEX, rebuild_index, generation_id)


@task_prerun.connect
def _take_request_id(task: Task, **_: object) -> None:
    """Log under the id of the request that asked for the work; the next time slice is asked for under it too."""
    request_id.set(task.request.get("request_id") or NO_REQUEST)


def _work(task_name: str, advance_one: Callable[[WorkerParts, int], bool], row_id: int) -> None:
    parts = worker_parts()
    parts.working.set()
    try:
        if advance_one(parts, row_id):
            parts.database.queue.send(task_name, row_id)
    finally:
        parts.working.clear()
