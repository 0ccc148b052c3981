"""The batches of an upgrade, several under way at once in each worker."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from models.unwanted import RunAbandoned, abandoned_when
from service import logs
from service.advisory_locks import AdvisoryLock
from service.crash_points import crash_point
from service.db import is_outage
from service.domain.claims import release_claim, return_claim
from service.domain.upgrade.batches import Work, claim_batch, set_aside, work_on_batch
from service.domain.upgrade.upgrades import fail_upgrade
from service.networks.transformations import PoisonedItems, TransformationFailed
from service.tables import Upgrade
from service.tracing import span
from workers.app import WorkerParts
from workers.outages import retry_when_back
from workers.stopping import StopAsked

events = logs.Events(__name__)


def run_batches(parts: WorkerParts, upgrade: Upgrade, work: Work) -> bool:
    """Run batches for up to one time slice; return whether there is reason to look for more.

    Several are under way at once, each in a thread and a transaction of its own: while some of them compute, the
    others read and write rows. Below full speed each thread runs one batch, and then the worker rests.
    """
    began = time.monotonic()
    ends = began + (parts.settings.task_slice_seconds if upgrade.speed == 1 else 0)

    stop_asked = StopAsked(parts.database, AdvisoryLock.UPGRADE_STOP, upgrade.id)

    def run_one_after_another() -> bool:
        found = _run_batch(parts, upgrade, work, stop_asked)
        while found and time.monotonic() < ends:
            found = _run_batch(parts, upgrade, work, stop_asked)
        return found

    count = parts.settings.batches_at_once
    with ThreadPoolExecutor(count) as threads:  # each thread logs under the request id of this one
        running = [threads.submit(copy_context().run, run_one_after_another) for _ in range(count)]
    parts.throttle.worked(upgrade.id, time.monotonic() - began)
    return any(future.result() for future in running)


def _run_batch(parts: WorkerParts, upgrade: Upgrade, work: Work, stop_asked: Callable[[], bool]) -> bool:
    """Claim and run one batch; return whether there is reason to look for another."""
    settings, upgrade_id = parts.settings, upgrade.id
    claim = claim_batch(parts.database, upgrade_id, settings.lease_seconds)
    if claim is None:
        return False

    if claim.attempts > settings.max_batch_attempts:
        stop(
            parts,
            upgrade_id,
            f"Batch {claim.row.id} was tried {settings.max_batch_attempts} times and never finished; its last error:"
            f" {claim.last_error or 'none, its worker died'}. Retry the upgrade when the cause is gone.",
        )
        return False

    try:
        with (
            abandoned_when(stop_asked),
            span("upgrade.batch", upgrade.trace, upgrade_id=upgrade_id, batch_id=claim.row.id),
            parts.database.session_scope() as session,
        ):
            work_on_batch(session, claim, work)
        crash_point("batch.committed")
    except RunAbandoned:
        with parts.database.session_scope() as session:
            return_claim(session, claim)
        return False
    except PoisonedItems as error:
        with parts.database.session_scope() as session:
            set_aside(session, claim, error.reasons)
    except TransformationFailed as error:
        stop(parts, upgrade_id, f"{error.message} Cancel the upgrade, or retry it when the cause is gone.")
        return False
    except Exception as error:  # noqa: BLE001 - any batch may fail; recorded, and tried again after a pause
        if is_outage(error):
            retry_when_back(parts.database, partial(return_claim, claim=claim))
            return True
        events.exception("upgrade.batch_failed", error, upgrade_id=upgrade_id, batch_id=claim.row.id)
        with parts.database.session_scope() as session:
            release_claim(session, claim, f"{type(error).__name__}: {error}", settings.retry_base_seconds)
    return True


def stop(parts: WorkerParts, upgrade_id: int, sentence: str) -> None:
    """Fail the upgrade, with what happened and what to do."""
    with parts.database.session_scope() as session:
        fail_upgrade(session, upgrade_id, sentence)
