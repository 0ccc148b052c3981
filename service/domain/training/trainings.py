"""Trainings of h and g: what may be asked for, and the rows of their jobs.

A training is a job (its states are in `service.domain.job_state`). A worker works on it for one time slice at a time,
alone (it holds the training's lock), and every change of the job's row asks whether it is still wanted, so that a
cancelled one leaves no transformation. A slice that is begun counts as an attempt until one is brought to its end: a
training that kills its worker again and again fails, after pauses that double.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from sqlalchemy import ColumnElement, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service import identity, logs
from service.advisory_locks import AdvisoryLock, hold, hold_if_free
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.job_state import UNFINISHED, JobAction, JobState
from service.domain.jobs import TRAINING, change_jobs, fail_job, succeed_job
from service.domain.phases import Phase, phase_of, rate_of
from service.domain.registry.registration import NetworkStore, register_transformation
from service.domain.registry.versions import get_version
from service.domain.training.chains import chained_transformations
from service.domain.training.datasets import PairFiles, find_dataset
from service.domain.training.files import TrainingFiles, remove_unwanted
from service.domain.training.paired_vectors import PairLimits, StoredPairs, check_bytes, store_pairs
from service.errors import Unprocessable
from service.json_records import JsonRecord
from service.networks.encoders import check_encodes
from service.queue import ADVANCE_TRAINING, send_after_commit
from service.settings import Settings
from service.tables import Job, ModelVersion

events = logs.Events(__name__)

LEAST_ROWS = 100


class TrainingRefused(Unprocessable):
    """The training cannot be begun, or cannot go on, with a sentence that says why."""


class TrainingEnded(Exception):
    """The job is not running any more: it was cancelled, or another worker ended it."""


@dataclass(frozen=True)
class WantedTraining:
    """What a client asks for; `options` has only those of the recipe that were given. With `chained`, images are also
    learned from by what transformations into `from_version` give for them."""

    from_version: str
    to_version: str
    with_g: bool
    dataset: str | None
    options: dict[str, Any]
    chained: bool = True


@dataclass(frozen=True)
class ListedImages:
    """How many images a data set had when the training was asked for, and a digest of what they were."""

    images: int
    listing_sha256: str


@dataclass(frozen=True)
class TrainingRequest(JsonRecord):
    """What the job's row keeps of what was asked for, and of what the training learns from."""

    from_version: str
    from_version_id: int
    to_version: str
    to_version_id: int
    with_g: bool
    dataset: str | None
    options: dict[str, Any]
    learns_from: StoredPairs | ListedImages
    chained_transformations: tuple[int, ...] = ()

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the request of a training's job."""
        return cls.from_json(job.request or {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the request that a row keeps; the keys of `learns_from` lie beside the others."""
        return super().from_json({**values, "learns_from": values})

    def to_json(self) -> dict[str, Any]:
        """Return what the row keeps."""
        values = super().to_json()
        learns_from: dict[str, Any] = values.pop("learns_from")
        return values | learns_from


@dataclass(frozen=True)
class TrainingResult(JsonRecord):
    """What a training made, by its id, and the transformations that it learned from too."""

    transformation: int
    chained_transformations: tuple[int, ...]


_MOST_LOSSES = 200


@dataclass(frozen=True)
class TrainingPhase(Phase):
    """`seconds` is the time that workers have worked on it, and what the rate is of. `losses` is the mean loss of each
    epoch; of very many, of some at equal distances."""

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedTransformation:
    """Artifacts of h and g, how they were trained, and how good they are on rows that were held out."""

    h: bytes
    g: bytes | None
    recipe: str
    seed: int
    options: dict[str, Any]  # every setting, given or not
    choices: dict[str, Any]  # what was chosen for h and g on rows that they did not learn from
    rows: int
    held_out_rows: int
    images_skipped: int
    images_sha256: str | None  # of all image files, in order; None where paired vectors were learned from
    metrics: dict[str, Any]


def plan_training(store: NetworkStore, wanted: WantedTraining, pairs: BinaryIO | None) -> Job:
    """Check what is asked for, store paired vectors, and queue the job.

    Raises `UnknownVersion` (404), `TrainingRefused`, `DatasetRefused` and `InvalidPairs` (422), `UnknownFormat` (415),
    `TooManyRows` (413), and for images `VersionWithoutNetworks` (409).
    """
    session = store.session
    before, after = get_version(session, wanted.from_version), get_version(session, wanted.to_version)
    if before.id == after.id:
        raise TrainingRefused("A transformation leads from one model version to another.")
    if wanted.with_g and after.side_information_dim is None:
        raise TrainingRefused(f"Model version {after.name!r} has no side-information, so there is no g to it.")
    if (wanted.dataset is None) == (pairs is None):
        raise TrainingRefused("A training learns from a dataset or from uploaded pairs: give one of them.")

    hold(session, AdvisoryLock.TRAINING_FILES, shared=True)
    prefix = uuid.uuid4().hex
    limits = PairLimits(before, after, LEAST_ROWS, store.settings.max_training_bytes)
    source = _take_source(store, wanted, pairs, limits, prefix)
    request = TrainingRequest(
        before.name, before.id, after.name, after.id, wanted.with_g, wanted.dataset, wanted.options, *source
    )
    job = Job(
        tenant=identity.current.get().tenant,
        kind=TRAINING,
        state=JobState.QUEUED,
        file_prefix=prefix,
        request=request.to_json(),
        progress={name: phase.to_json() for name, phase in _planned_phases(request).items()},
    )
    session.add(job)
    session.flush()  # its id is the answer
    session.refresh(job)

    asked_for = {"from_version": before.name, "to_version": after.name, "dataset": wanted.dataset}
    record(session, Act.TRAINING_STARTED, Subject("job", job.id), after=asked_for)
    send_after_commit(session, ADVANCE_TRAINING, job.id)
    events.info("training.queued", job_id=job.id, from_version=before.name, to_version=after.name)
    return job


def _take_source(
    store: NetworkStore, wanted: WantedTraining, pairs: BinaryIO | None, limits: PairLimits, prefix: str
) -> tuple[StoredPairs | ListedImages, tuple[int, ...]]:
    """Store the paired vectors that are learned from, or list the images, with the chained transformations that are
    learned from too: of vectors nobody knows what these would give. Refuse too few and too many."""
    source = PairFiles([]) if wanted.dataset is None else find_dataset(store.settings.datasets, wanted.dataset)
    if isinstance(source, PairFiles):
        files = TrainingFiles(store.blobs, prefix)
        return store_pairs(source.paths if pairs is None else [pairs], limits, wanted.with_g, files), ()

    for version in (limits.before, limits.after):
        check_encodes(version)
    if len(source) < limits.least_rows:
        raise TrainingRefused(f"A training needs at least {limits.least_rows} images; there are {len(source)}.")
    task = wanted.options.get("task", "instance")
    chained = chained_transformations(store, limits.before, limits.after, task) if wanted.chained else ()
    check_bytes(len(source), limits.dims().values(), limits.max_bytes, len(chained))
    return ListedImages(len(source), source.listing_sha256()), chained


def _planned_phases(request: TrainingRequest) -> dict[str, TrainingPhase]:
    """Return the phases before any work; how many epochs there are is not known yet."""
    phases = {}
    if isinstance(request.learns_from, ListedImages):
        phases["encoding"] = TrainingPhase(0, request.learns_from.images, "images")
    for name in ("h", "g") if request.with_g else ("h",):
        phases[f"training_{name}"] = TrainingPhase(0, 0, "epochs")
    return {**phases, "evaluating": TrainingPhase(0, 1, "evaluation")}


def training_phase(done: int, total: int, unit: str, seconds: float, losses: Sequence[float] = ()) -> TrainingPhase:
    """Return a phase that workers have worked on for so many seconds."""
    phase = phase_of(done, total, unit, rate_of(done, seconds) if done else None)
    step = math.ceil(len(losses) / _MOST_LOSSES) or 1
    kept = [float(f"{loss:.6g}") for loss in losses[::step] if math.isfinite(loss)]
    return TrainingPhase(**asdict(phase), seconds=round(seconds, 3), losses=kept)


def phases_of(job: Job) -> dict[str, TrainingPhase]:
    """Return how far a training is, by the names of its phases."""
    return {name: TrainingPhase.from_json(values) for name, values in job.progress.items()}


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

    change_jobs(session, Job.id == job_id, JobAction.BEGIN, attempts=Job.attempts + 1)
    session.refresh(job)
    return job


def end_slice(session: Session, job_id: int) -> None:
    """Record that a slice was brought to its end: the training gets on."""
    session.execute(update(Job).where(_runs(job_id)).values(attempts=0, error=None))


def record_shortage(session: Session, job_id: int, sentence: str) -> None:
    """Say why a training rests while the disk has too little room; the end of its next slice takes that back."""
    unfinished = (Job.id == job_id) & Job.state.in_(UNFINISHED)
    session.execute(update(Job).where(unfinished, Job.error.is_(None)).values(error=sentence))


def record_failed_attempt(session: Session, job_id: int, sentence: str) -> None:
    """Keep the reason of a failure that may pass; the training is tried again after a pause."""
    session.execute(update(Job).where(_runs(job_id)).values(error=sentence, updated_at=func.now()))


def record_phase(session: Session, job_id: int, name: str, phase: TrainingPhase) -> None:
    """Record how far a phase is. Raises `TrainingEnded` when the job does not run any more."""
    merged = Job.progress.op("||")(cast({name: phase.to_json()}, JSONB))
    running = session.scalar(
        update(Job).where(_runs(job_id)).values(progress=merged, updated_at=func.now()).returning(Job.id)
    )
    if running is None:
        raise TrainingEnded


def versions_of(session: Session, request: TrainingRequest) -> tuple[ModelVersion, ModelVersion]:
    """Return the versions that the training leads from and to. Raises `TrainingRefused` when one was deleted."""
    found = []
    wanted = {request.from_version_id: request.from_version, request.to_version_id: request.to_version}
    for version_id, name in wanted.items():
        version = session.get(ModelVersion, version_id)
        if version is None:
            raise TrainingRefused(f"Model version {name!r} was deleted while the training ran.")
        found.append(version)
    return found[0], found[1]


def complete_training(store: NetworkStore, job_id: int, trained: TrainedTransformation) -> None:
    """Register the transformation and end the job, in one transaction.

    Raises `TrainingEnded` when the job does not run any more, and what `versions_of` and the registration raise.
    """
    job = store.session.scalar(select(Job).where(_runs(job_id)).with_for_update())
    if job is None:
        raise TrainingEnded

    request = TrainingRequest.of(job)
    before, after = versions_of(store.session, request)
    reason = f"Trained by job {job_id}."
    with identity.acting_for(job.tenant):
        transformation = register_transformation(store, before.name, after.name, trained.h, trained.g, reason)
    transformation.training = _training_record(job, request, trained)
    transformation.metrics = trained.metrics
    succeed_job(store.session, job_id, TrainingResult(transformation.id, request.chained_transformations).to_json())
    events.info("training.succeeded", job_id=job_id, transformation_id=transformation.id)


def _training_record(job: Job, request: TrainingRequest, trained: TrainedTransformation) -> dict[str, Any]:
    learned = request.learns_from
    return {
        "job": job.id,
        "recipe": trained.recipe,
        "seed": trained.seed,
        "options": trained.options,
        "choices": trained.choices,
        "rows": trained.rows,
        "held_out_rows": trained.held_out_rows,
        "images_skipped": trained.images_skipped,
        "chained_transformations": list(request.chained_transformations),
        "dataset": request.dataset,
        "dataset_sha256": learned.sha256 if isinstance(learned, StoredPairs) else trained.images_sha256,
        "seconds": round(sum(phase.seconds for phase in phases_of(job).values()), 3),
    }


def fail_training(session: Session, job_id: int, sentence: str) -> None:
    """End the training with a sentence that says why; nothing if it has ended already."""
    if fail_job(session, job_id, sentence):
        events.warning("training.failed", job_id=job_id, error=sentence)


def unfinished_trainings(session: Session, settings: Settings) -> Sequence[int]:
    """Return the trainings that a worker has something to do for: what the sweep nudges."""
    query = select(Job.id).where(Job.kind == TRAINING, Job.state.in_(UNFINISHED), _rested(settings))
    return session.scalars(query.order_by(Job.id)).all()


def remove_files_of_ended(database: Database, blobs: BlobStore, local: Path) -> None:
    """Remove the files, here and in the blob store, of every training that has ended or never began."""

    def read_wanted() -> set[str] | None:
        with database.session_scope() as session:
            if not hold_if_free(session, AdvisoryLock.TRAINING_FILES):
                return None
            return set(session.scalars(select(Job.file_prefix).where(Job.state.in_(UNFINISHED), Job.kind == TRAINING)))

    remove_unwanted(blobs, local, read_wanted)


def _runs(job_id: int) -> ColumnElement[bool]:
    return (Job.id == job_id) & (Job.state == JobState.RUNNING)


def _rested(settings: Settings) -> ColumnElement[bool]:
    pause = func.make_interval(0, 0, 0, 0, 0, 0, settings.retry_base_seconds * func.power(2.0, Job.attempts - 1))
    return or_(Job.attempts == 0, Job.updated_at + pause <= func.now())
