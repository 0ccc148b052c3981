"""The sweep: one thread per worker that sends lost nudges again, finds index builds that are due, looks after upgrades
that are baked, and removes what dropped generations, replaced indexes, ended trainings and ingests leave, and queries
that were kept for long enough."""

import socket
import threading
import time

from celery.signals import worker_ready, worker_shutting_down

from service import logs
from service.domain.backfill.backfills import unfinished_backfills
from service.domain.erasure.erasures import unfinished_erasures
from service.domain.external.upgrades import unfinished_external_upgrades
from service.domain.indexes.query_samples import remove_old_samples
from service.domain.indexes.removal import remove_dropped
from service.domain.ingest.batches import unfinished_ingests
from service.domain.ingest.references import remove_lists_of_ended
from service.domain.judging.shadowed_queries import remove_old_shadowed
from service.domain.training.trainings import remove_files_of_ended, unfinished_trainings
from service.domain.upgrade.guarding import guard_bakes
from service.domain.upgrade.upgrades import find_due_build, unfinished_upgrades
from service.metrics import SWEEP_AGE
from service.queue import (
    ADVANCE_BACKFILL,
    ADVANCE_ERASURE,
    ADVANCE_EXTERNAL,
    ADVANCE_INGEST,
    ADVANCE_TRAINING,
    ADVANCE_UPGRADE,
    BUILD_INDEX,
)
from workers.app import WorkerParts, worker_parts
from workers.training import scratch_folder

events = logs.Events(__name__)
_stopping = threading.Event()
_RETENTION_EVERY_SECONDS = 600.0  # it reads all that is kept


def sweep(parts: WorkerParts) -> None:
    """Nudge every upgrade, here or of another store, training, ingest, backfill and index build that a worker could
    work on; a nudge too many finds nothing to do.

    A worker at work sends nothing, so that nudges do not pile up at the broker during a long one, and removes nothing;
    it looks after upgrades that are baked all the same.
    """
    # The container's health check looks at this file's age.
    parts.settings.data.mkdir(parents=True, exist_ok=True)
    (parts.settings.data / f"worker-{socket.gethostname()}.alive").touch()
    _guard_bakes(parts)
    if parts.working.is_set():
        return

    with parts.database.session_scope() as session:
        upgrade_ids = unfinished_upgrades(session)
        training_ids = unfinished_trainings(session, parts.settings)
        ingest_ids = unfinished_ingests(session)
        backfill_ids = unfinished_backfills(session)
        external_ids = unfinished_external_upgrades(session)
        erasure_ids = unfinished_erasures(session)
        remove_lists_of_ended(session)
        due = find_due_build(session, parts.engine)

    for upgrade_id in upgrade_ids:
        parts.database.queue.send(ADVANCE_UPGRADE, upgrade_id)
    for backfill_id in backfill_ids:
        parts.database.queue.send(ADVANCE_BACKFILL, backfill_id)
    for external_id in external_ids:
        parts.database.queue.send(ADVANCE_EXTERNAL, external_id)
    for job_id in training_ids:
        parts.database.queue.send(ADVANCE_TRAINING, job_id)
    for job_id in ingest_ids:
        parts.database.queue.send(ADVANCE_INGEST, job_id)
    for job_id in erasure_ids:
        parts.database.queue.send(ADVANCE_ERASURE, job_id)
    if due is not None:
        parts.database.queue.send(BUILD_INDEX, due.generation.generation_id)

    if not training_ids:
        parts.training.forget()  # another worker may have ended what this one once worked on
    remove_files_of_ended(parts.database, parts.blobs, scratch_folder(parts.settings))
    remove_dropped(parts.database, parts.engine, wait_seconds=1.0)


def note_sweep(seconds_ago: float = 0.0) -> None:
    """Count the age of the last sweep, as `/metrics` of this worker says it, from then on."""
    at = time.monotonic() - seconds_ago
    SWEEP_AGE.set_function(lambda: time.monotonic() - at)


def _guard_bakes(parts: WorkerParts) -> None:
    try:
        guard_bakes(parts.database)
    except Exception as error:  # noqa: BLE001 - whatever keeps a bake from being looked at keeps nothing else; logged
        events.exception("sweep.bakes_failed", error)


def remove_old_queries(parts: WorkerParts) -> None:
    """Remove what is kept of users' queries for longer than it may."""
    with parts.database.session_scope() as session:
        remove_old_samples(session, parts.settings.query_retention_days)
        remove_old_shadowed(session, parts.settings.query_retention_days)


def _sweep_until_stopped() -> None:
    parts = worker_parts()
    note_sweep()
    retention_due = 0.0
    while not _stopping.wait(parts.settings.sweep_every_seconds):
        try:
            sweep(parts)
            note_sweep()
            if time.monotonic() >= retention_due:
                remove_old_queries(parts)
                retention_due = time.monotonic() + _RETENTION_EVERY_SECONDS
        except Exception as error:  # noqa: BLE001 - the database or broker is away; logged, and tried again next time
            events.exception("sweep.failed", error)


@worker_ready.connect
def _start(**_: object) -> None:
    threading.Thread(target=_sweep_until_stopped, name="sweep", daemon=True).start()


@worker_shutting_down.connect
def _stop(**_: object) -> None:
    _stopping.set()
