"""Advancing an ingest by reference: batches of its list, one after another, until the time slice ends."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from service import logs
from service.crash_points import crash_point
from service.db import is_outage
from service.domain.claims import return_claim
from service.domain.gallery.images import ImageResult, ImageUpload, ingest_images_and
from service.domain.ingest.batches import (
    BatchClaim,
    IngestNotRunning,
    RunningIngest,
    begin_ingest,
    claim_batch,
    end_ingest,
    lease_kept,
    record_batch,
    release_batch,
)
from service.domain.jobs import fail_job
from service.identity import acting_for
from service.image_sources.errors import ImageAway
from service.image_sources.read_ahead import ReadAhead
from workers.app import WorkerParts, all_cores
from workers.outages import retry_when_back

events = logs.Events(__name__)

_REST_SLICE_SECONDS = 0.2


class _SourceAway(Exception):
    """An image may be readable later: the batch is tried again."""


def advance_ingest(parts: WorkerParts, job_id: int) -> bool:
    """Work on an ingest for one time slice; return whether there is more that this worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    while time.monotonic() < ends:
        with parts.database.session_scope() as session:
            ingest = begin_ingest(session, job_id)
        if ingest is None:
            return False

        rest = parts.ingest_throttle.rest_seconds(job_id, ingest.speed)
        if rest > 0:
            time.sleep(min(rest, _REST_SLICE_SECONDS))  # short: other work gets its turn, the speed may change
            return True

        began = time.monotonic()
        claim = claim_batch(parts.database, job_id, parts.settings.lease_seconds)
        if claim is None:
            with parts.database.session_scope() as session:
                end_ingest(session, job_id)
            return False
        if not _run_batch(parts, ingest, claim):
            return False
        parts.ingest_throttle.worked(job_id, time.monotonic() - began)
    return True


def _run_batch(parts: WorkerParts, ingest: RunningIngest, claim: BatchClaim) -> bool:
    """Run a claimed batch; return whether there is reason to look for another."""
    if claim.attempts > parts.settings.max_batch_attempts:
        return _give_up(parts, claim)
    try:
        with lease_kept(parts.database, claim, parts.settings.lease_seconds), all_cores(parts.settings):
            _ingest(parts, ingest, claim)
        crash_point("ingest.committed")
    except IngestNotRunning:
        events.info("ingest.batch_not_wanted", job_id=claim.row.job_id, batch_id=claim.row.id)
        with parts.database.session_scope() as session:
            return_claim(session, claim)
        return False
    except Exception as error:  # noqa: BLE001 - any batch may fail; recorded, and tried again after a pause
        if is_outage(error):
            retry_when_back(parts.database, partial(return_claim, claim=claim))
            return True
        sentence = str(error) if isinstance(error, _SourceAway) else f"{type(error).__name__}: {error}"
        events.warning("ingest.batch_failed", job_id=claim.row.job_id, batch_id=claim.row.id, error=sentence)
        with parts.database.session_scope() as session:
            release_batch(session, claim, sentence, parts.settings.retry_base_seconds)
    return True


def _ingest(parts: WorkerParts, ingest: RunningIngest, claim: BatchClaim) -> None:
    """Read, encode and write the batch, and record it."""
    is_last = claim.attempts == parts.settings.max_batch_attempts
    uris = [item.image_uri or "" for item in claim.items]
    with (
        acting_for(ingest.tenant),
        closing(ReadAhead(parts.images, uris, parts.settings.image_reads_at_once)) as images,
    ):
        uploads = [
            ImageUpload(item, partial(_read, images.take, position, is_last))
            for position, item in enumerate(claim.items)
        ]
        ingest_images_and(
            lambda session, results: record_batch(session, claim, results), parts.writer, ingest.gallery_name, uploads
        )


def _read(take: Callable[[int], bytes], position: int, is_last: bool) -> bytes:
    """Read an image; one whose source is away is rejected at the last try of its batch only."""
    try:
        return take(position)
    except ImageAway as error:
        if is_last:
            raise
        raise _SourceAway(error.message) from error


def _give_up(parts: WorkerParts, claim: BatchClaim) -> bool:
    """Reject the images of a batch that took its worker down each time; fail the job where the reason is another."""
    tries = parts.settings.max_batch_attempts
    if claim.last_error is not None:
        with parts.database.session_scope() as session:
            sentence = f"A batch was tried {tries} times; its last error: {claim.last_error}. Send what is left again."
            fail_job(session, claim.row.job_id, sentence)
        return False
    reason = f"It was not ingested: a worker died each of the {tries} times that it had the image and those beside it."
    results = [ImageResult(item.external_id, "rejected", reason) for item in claim.items]
    try:
        with parts.database.session_scope() as session:
            record_batch(session, claim, results)
    except IngestNotRunning:
        return False
    return True
