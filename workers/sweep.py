"""The sweep: one thread per worker that sends lost nudges again, finds index builds that are due, and removes what
dropped generations, replaced indexes and ended trainings leave."""

import socket
import threading

from celery.signals import worker_ready, worker_shutting_down

from service import logs
from service.domain.indexes.removal import remove_dropped
from service.domain.training.trainings import remove_files_of_ended, unfinished_trainings
from service.domain.upgrade.upgrades import find_due_build, unfinished_upgrades
from service.queue import ADVANCE_TRAINING, ADVANCE_UPGRADE, BUILD_INDEX
from workers.app import WorkerParts, worker_parts
from workers.training import scratch_folder

events = logs.Events(__name__)
_stopping = threading.Event()


def sweep(parts: WorkerParts) -> None:
    """Nudge every upgrade, training and index build that a worker could work on; a nudge too many finds nothing to do.

    A worker at work sends nothing, so that nudges do not pile up at the broker during a long one.
    """
    # The container's health check looks at this file's age.
    parts.settings.data.mkdir(parents=True, exist_ok=True)
    (parts.settings.data / f"worker-{socket.gethostname()}.alive").touch()
    if parts.working.is_set():
        return

    with parts.database.session_scope() as session:
        upgrade_ids = unfinished_upgrades(session)
        job_ids = unfinished_trainings(session, parts.settings)
        due = find_due_build(session, parts.engine)

    for upgrade_id in upgrade_ids:
        parts.database.queue.send(ADVANCE_UPGRADE, upgrade_id)
    for job_id in job_ids:
        parts.database.queue.send(ADVANCE_TRAINING, job_id)
    if due is not None:
        parts.database.queue.send(BUILD_INDEX, due.generation.generation_id)

    if not job_ids:
        parts.training.forget()  # another worker may have ended what this one once worked on
    remove_files_of_ended(parts.database, parts.blobs, scratch_folder(parts.settings))
    remove_dropped(parts.database, parts.engine, wait_seconds=1.0)


def _sweep_until_stopped() -> None:
    parts = worker_parts()
    while not _stopping.wait(parts.settings.sweep_every_seconds):
        try:
            sweep(parts)
        except Exception as error:  # noqa: BLE001 - the database or broker is away; logged, and tried again next time
            events.exception("sweep.failed", error)


@worker_ready.connect
def _start(**_: object) -> None:
    threading.Thread(target=_sweep_until_stopped, name="sweep", daemon=True).start()


@worker_shutting_down.connect
def _stop(**_: object) -> None:
    _stopping.set()
