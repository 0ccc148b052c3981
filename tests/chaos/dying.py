"""Steps of a worker and of the API, in a process that dies at the crash point with which it is armed.

The processes are forked from one that has imported everything and run nothing (`forkserver`): a fresh interpreter would
spend seconds on importing torch, and a fork of the test's own process would inherit its threads' locks.
"""

import multiprocessing
import time
from collections.abc import Callable

from fastapi.testclient import TestClient

from service import crash_points
from service.app import create_app
from service.queue import celery_application
from service.settings import Settings
from tests.external_stores import open_fake
from tests.external_upgrades import make_fake_parts
from workers.app import make_worker_parts
from workers.backfilling import advance_backfill
from workers.connecting import advance_external
from workers.erasing import advance_an_erasure
from workers.ingesting import advance_ingest
from workers.rebuilding import rebuild_index
from workers.sweep import sweep
from workers.upgrading import advance_upgrade

Step = Callable[[Settings, int], None]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
_DIES_SECONDS = 60.0


def advance(settings: Settings, upgrade_id: int) -> None:
    """Do what a worker does for an upgrade."""
    parts = make_worker_parts(settings, celery_application(settings))
    while advance_upgrade(parts, upgrade_id):
        pass


def guard(settings: Settings, _: int) -> None:
    """Do what a worker's sweep does, for upgrades that are baked among others."""
    sweep(make_worker_parts(settings, celery_application(settings)))


def rebuild(settings: Settings, generation_id: int) -> None:
    """Do what a worker does for a generation whose index file is due."""
    rebuild_index(make_worker_parts(settings, celery_application(settings)), generation_id)


def backfill(settings: Settings, backfill_id: int) -> None:
    """Do what a worker does for a backfill."""
    parts = make_worker_parts(settings, celery_application(settings))
    while advance_backfill(parts, backfill_id):
        pass


def connect(settings: Settings, upgrade_id: int) -> None:
    """Do what a worker does for an upgrade of another store."""
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    while advance_external(parts, upgrade_id):
        pass


def roll_external_back(settings: Settings, upgrade_id: int) -> None:
    with TestClient(create_app(settings, make_fake_parts)) as client:
        client.post(f"/v1/external-upgrades/{upgrade_id}/rollback")


def ingest(settings: Settings, job_id: int) -> None:
    """Do what a worker does for an ingest by reference."""
    parts = make_worker_parts(settings, celery_application(settings))
    while advance_ingest(parts, job_id):
        pass


def erase(settings: Settings, job_id: int) -> None:
    """Do what a worker does for an erasure."""
    parts = make_worker_parts(settings, celery_application(settings))
    while advance_an_erasure(parts, job_id):
        pass


def cancel(settings: Settings, upgrade_id: int) -> None:
    _post(settings, upgrade_id, "cancel")


def cutover(settings: Settings, upgrade_id: int) -> None:
    _post(settings, upgrade_id, "cutover")


def rollback(settings: Settings, upgrade_id: int) -> None:
    _post(settings, upgrade_id, "rollback")


def finalize(settings: Settings, upgrade_id: int) -> None:
    _post(settings, upgrade_id, "finalize")


def _post(settings: Settings, upgrade_id: int, action: str) -> None:
    with TestClient(create_app(settings)) as client:
        client.post(f"/v1/upgrades/{upgrade_id}/{action}")


def exit_code_of(step: Step, settings: Settings, row_id: int, meanwhile: Callable[[], object] = int) -> int | None:
    """Run a step in a process armed with `settings.crash_at` and call `meanwhile()` until it ends."""
    process = _CONTEXT.Process(target=_run, args=(step, settings, row_id), daemon=True)
    process.start()
    ends = time.monotonic() + _DIES_SECONDS
    while process.is_alive() and time.monotonic() < ends:
        meanwhile()
        process.join(0.02)
    if process.is_alive():
        process.kill()
    return process.exitcode


def _run(step: Step, settings: Settings, row_id: int) -> None:
    crash_points.arm(settings.crash_at)
    step(settings, row_id)
