"""Trainings of h and g: what may be asked for, and the rows of their jobs.

A training is a job that goes `queued -> running -> succeeded | failed | cancelled`. A worker works on it for one time
slice at a time, alone (it holds `TRAINING_LOCK`), and every change of the job's row asks whether it is still wanted, so
that a cancelled one leaves no transformation. A slice that is begun counts as an attempt until one is brought to its
end: a training that kills its worker again and again fails, after pauses that double.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import ColumnElement, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobStore
from service.db import Database
from service.domain import registry
from service.domain.jobs import TRAINING, UNFINISHED
from service.domain.training.datasets import PairFiles, find_dataset
from service.domain.training.files import TrainingFiles, remove_unwanted
from service.domain.training.paired_vectors import PairLimits, check_bytes, store_pairs
from service.errors import Unprocessable
from service.networks.images import ImageSet
from service.queue import ADVANCE_TRAINING, send_after_commit
from service.settings import Settings
from service.tables import Job, ModelVersion, Transformation

events = logs.Events(__name__)

# Advisory lock (this, job id): one worker works on a training at a time.
TRAINING_LOCK = 724_063
# Held shared from before a request stores rows until its job has committed; whoever removes files holds it alone.
_FILES_LOCK = 7_240_613

LEAST_ROWS = 100


class TrainingRefused(Unprocessable):
    """The training cannot be begun, or cannot go on, with a sentence that says why."""


class TrainingEnded(Exception):
    """The job is not running any more: it was cancelled, or another worker ended it."""


@dataclass(frozen=True)
class WantedTraining:
    """What a client asks for; `options` has only those that were given."""

    from_version: str
    to_version: str
    with_g: bool
    dataset: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class TrainedTransformation:
    """Artifacts of h and g, and the records that are kept beside them."""

    h: bytes
    g: bytes | None
    training: dict[str, Any]
    metrics: dict[str, Any]


def plan_training(
    session: Session, blobs: BlobStore, settings: Settings, wanted: WantedTraining, pairs: BinaryIO | None
) -> Job:
    """Check what is asked for, store paired vectors, and queue the job.

    Raises `UnknownVersion` (404), `TrainingRefused`, `DatasetRefused` and `InvalidPairs` (422), `UnknownFormat` (415)
    and `TooManyRows` (413).
    """
    before, after = registry.get_version(session, wanted.from_version), registry.get_version(session, wanted.to_version)
    if before.id == after.id:
        raise TrainingRefused("A transformation leads from one model version to another.")
    if wanted.with_g and after.side_information_dim is None:
        raise TrainingRefused(f"Model version {after.name!r} has no side-information, so there is no g to it.")
    if (wanted.dataset is None) == (pairs is None):
        raise TrainingRefused("A training learns from a dataset or from uploaded pairs: give one of them.")
    session.execute(select(func.pg_advisory_xact_lock_shared(_FILES_LOCK)))
    prefix = uuid.uuid4().hex
    source = PairFiles([]) if wanted.dataset is None else find_dataset(settings.datasets, wanted.dataset)
    limits = PairLimits(before, after, LEAST_ROWS, settings.max_training_bytes)
    learned_from: dict[str, Any]
    if isinstance(source, PairFiles):
        parts: Sequence[BinaryIO | Path] = source.paths if pairs is None else [pairs]
        stored = store_pairs(parts, limits, wanted.with_g, TrainingFiles(blobs, prefix))
        learned_from = {"rows": stored.rows, "sha256": stored.sha256}
    else:
        learned_from = _check_images(source, limits)
    job = Job(
        kind=TRAINING,
        state="queued",
        file_prefix=prefix,
        request={
            "from_version": before.name,
            "from_version_id": before.id,
            "to_version": after.name,
            "to_version_id": after.id,
            "with_g": wanted.with_g,
            "dataset": wanted.dataset,
            "options": wanted.options,
            **learned_from,
        },
        progress=_phases(isinstance(source, PairFiles), wanted.with_g, learned_from),
    )
    session.add(job)
    session.flush()  # its id is the answer
    session.refresh(job)
    send_after_commit(session, ADVANCE_TRAINING, job.id)
    events.info("training.queued", job_id=job.id, from_version=before.name, to_version=after.name)
    return job


def _check_images(images: ImageSet, limits: PairLimits) -> dict[str, Any]:
    if len(images) < limits.least_rows:
        raise TrainingRefused(f"A training needs at least {limits.least_rows} images; there are {len(images)}.")
    check_bytes(len(images), limits.dims().values(), limits.max_bytes)
    return {"images": len(images), "listing_sha256": images.listing_sha256()}


def _phases(are_pairs: bool, with_g: bool, learned_from: dict[str, Any]) -> dict[str, Any]:
    phases = {} if are_pairs else {"encoding": phase(0, learned_from["images"], "images", 0.0)}
    for name in ("h", "g") if with_g else ("h",):
        phases[f"training_{name}"] = phase(0, 0, "epochs", 0.0)
    return {**phases, "evaluating": phase(0, 1, "evaluation", 0.0)}


def phase(done: int, total: int, unit: str, seconds: float) -> dict[str, Any]:
    """Return a phase's progress; `seconds` is the time that workers have worked on it, and what the rate is of."""
    rate = done / seconds if done and seconds > 0 else None
    eta = (total - done) / rate if rate else None
    ended = 0 < total <= done
    return {
        "done": done,
        "total": total,
        "unit": unit,
        "seconds": round(seconds, 3),
        "rate": rate,
        "eta_seconds": 0.0 if ended else eta,
    }


def begin_slice(session: Session, job_id: int, settings: Settings) -> Job | None:
    """Count an attempt and return the job; None when there is nothing to do for it, or not yet."""
    job = session.scalar(
        select(Job)
        .where(Job.id == job_id, Job.kind == TRAINING, Job.state.in_(UNFINISHED), _rested(settings))
        .with_for_update()
    )
    if job is None:
        return None
    if job.attempts >= settings.max_batch_attempts:
        cause = job.error or "none, its worker died"
        fail_training(
            session, job_id, f"It was tried {job.attempts} times without getting on; its last error: {cause}."
        )
        return None
    job.state, job.attempts, job.updated_at = "running", job.attempts + 1, func.now()
    return job


def end_slice(session: Session, job_id: int) -> None:
    """Record that a slice was brought to its end: the training gets on."""
    session.execute(update(Job).where(Job.id == job_id, Job.state == "running").values(attempts=0, error=None))


def record_failed_attempt(session: Session, job_id: int, sentence: str) -> None:
    """Keep the reason of a failure that may pass; the training is tried again after a pause."""
    session.execute(
        update(Job).where(Job.id == job_id, Job.state == "running").values(error=sentence, updated_at=func.now())
    )


def record_phase(session: Session, job_id: int, name: str, progress: dict[str, Any]) -> None:
    """Record how far a phase is. Raises `TrainingEnded` when the job does not run any more."""
    merged = Job.progress.op("||")(cast({name: progress}, JSONB))
    running = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.state == "running")
        .values(progress=merged, updated_at=func.now())
        .returning(Job.id)
    )
    if running is None:
        raise TrainingEnded


def versions_of(session: Session, job: Job) -> tuple[ModelVersion, ModelVersion]:
    """Return the versions that the training leads from and to. Raises `TrainingRefused` when one was deleted."""
    assert job.request is not None
    found = []
    for which in ("from_version", "to_version"):
        version = session.get(ModelVersion, job.request[f"{which}_id"])
        if version is None:
            raise TrainingRefused(f"Model version {job.request[which]!r} was deleted while the training ran.")
        found.append(version)
    return found[0], found[1]


def complete_training(
    session: Session, blobs: BlobStore, settings: Settings, job_id: int, trained: TrainedTransformation
) -> Transformation:
    """Register the transformation and end the job, in one transaction. Raises `TrainingEnded` when it does not run."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.state == "running").with_for_update())
    if job is None:
        raise TrainingEnded
    before, after = versions_of(session, job)
    transformation = registry.register_transformation(
        session, blobs, settings, before.name, after.name, trained.h, trained.g
    )
    transformation.training, transformation.metrics = trained.training, trained.metrics
    job.state, job.result, job.error = "succeeded", {"transformation": transformation.id}, None
    job.finished_at = job.updated_at = func.now()
    events.info("training.succeeded", job_id=job_id, transformation_id=transformation.id)
    return transformation


def fail_training(session: Session, job_id: int, sentence: str) -> None:
    """End the training with a sentence that says why; nothing if it has ended already."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(UNFINISHED))
        .values(state="failed", error=sentence, finished_at=func.now(), updated_at=func.now())
    )
    events.warning("training.failed", job_id=job_id, error=sentence)


def unfinished_trainings(session: Session, settings: Settings) -> Sequence[int]:
    """Return the trainings that a worker has something to do for: what the sweep nudges."""
    query = select(Job.id).where(Job.kind == TRAINING, Job.state.in_(UNFINISHED), _rested(settings))
    return session.scalars(query.order_by(Job.id)).all()


def remove_files_of_ended(database: Database, blobs: BlobStore, local: Path) -> None:
    """Remove the files, here and in the blob store, of every training that has ended or never began."""

    def read_wanted() -> set[str] | None:
        with database.session_scope() as session:
            if not session.scalar(select(func.pg_try_advisory_xact_lock(_FILES_LOCK))):
                return None
            return set(session.scalars(select(Job.file_prefix).where(Job.state.in_(UNFINISHED), Job.kind == TRAINING)))

    remove_unwanted(blobs, local, read_wanted)


def _rested(settings: Settings) -> ColumnElement[bool]:
    pause = func.make_interval(0, 0, 0, 0, 0, 0, settings.retry_base_seconds * func.power(2.0, Job.attempts - 1))
    return or_(Job.attempts == 0, Job.updated_at + pause <= func.now())
