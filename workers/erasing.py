"""Advancing an erasure: one step after another, until the time slice ends."""

import time

from service import logs
from service.advisory_locks import AdvisoryLock
from service.db import is_outage
from service.domain.erasure.work import EraserParts, advance_erasure, record_trouble
from service.domain.jobs import fail_job
from service.errors import Conflict, GalleryError
from workers.app import WorkerParts

events = logs.Events(__name__)


def advance_an_erasure(parts: WorkerParts, job_id: int) -> bool:
    """Work on an erasure for one time slice; return whether there is more that this worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    eraser = EraserParts(parts.database, parts.blobs, parts.engine, parts.settings.removal_wait_seconds)
    with parts.database.advisory_lock(AdvisoryLock.ERASURE, job_id) as mine:
        while mine and time.monotonic() < ends:
            try:
                if not advance_erasure(eraser, job_id):
                    return False
            except Conflict as error:
                with parts.database.session_scope() as session:
                    fail_job(session, job_id, f"{error.message} Then ask for the erasure again.")
                return False
            except Exception as error:
                if is_outage(error):
                    raise
                sentence = error.message if isinstance(error, GalleryError) else f"{type(error).__name__}: {error}"
                events.warning("erasure.step_failed", job_id=job_id, error=sentence)
                with parts.database.session_scope() as session:
                    record_trouble(session, job_id, sentence)
                return False
    return mine
