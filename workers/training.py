"""Advancing a training of h and g by one time slice.

1. encode the images of a data set by both versions, and by chained transformations, a part at a time (paired vectors
   are stored when they are posted);
2. train h, then g; the state goes into the blob store when the slice, or the last epoch, ends. A slice ends after an
   epoch, or inside one that takes longer, and early while an upgrade needs workers: somebody waits for that;
3. measure both on rows that they never saw, and register them as a transformation.
Every step begins where the blob store says that the last one ended: a worker that dies costs its slice. The state after
each epoch of the slice is in a scratch file in the data folder, which is used only if the blob store has the same.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from models.artifacts import ArtifactError, TransformationNetwork, save_network
from models.precision import fastest_precision
from models.training.checkpoints import load_checkpoint_if_whole, position_of
from models.training.features import PairedFeatures
from models.training.loop import Paused
from models.training.transformation import FittedTransformation, TransformationTraining, train_transformation
from service import logs
from service.advisory_locks import AdvisoryLock
from service.db import is_outage
from service.disk import shortage
from service.domain.registry.registration import NetworkStore
from service.domain.training.chains import ChainBroken, ChainedSource, chained_sources
from service.domain.training.datasets import PairFiles, find_dataset
from service.domain.training.files import FOLDER, FeatureRows, TrainedTo, TrainingFiles, label_numbers
from service.domain.training.trainings import (
    LEAST_ROWS,
    ListedImages,
    TrainedTransformation,
    TrainingEnded,
    TrainingRefused,
    TrainingRequest,
    begin_slice,
    complete_training,
    end_slice,
    fail_training,
    phases_of,
    record_failed_attempt,
    record_phase,
    record_shortage,
    remove_files_of_ended,
    training_phase,
    versions_of,
)
from service.domain.upgrade.upgrades import upgrade_needs_workers
from service.errors import Unprocessable
from service.networks.encoders import Encoded, Encoders
from service.networks.images import ImageSet, InvalidImage, LabelledImage, ReducedImage
from service.networks.transformations import load_network
from service.settings import Settings
from service.tables import Job, ModelVersion
from workers.app import WorkerParts, all_cores
from workers.held_out import held_out_metrics
from workers.training_rows import TrainingRows, load_rows

events = logs.Events(__name__)

_RECORD_SECONDS = 1.0
# How much longer than its time a slice may take to end with an epoch, where its state is written anyway.
_GRACE_SECONDS = 0.5


class _SliceEnded(Exception):
    """The time is over; what was done is in the blob store."""


@dataclass(frozen=True)
class _Slice:
    """One worker's time slice of one training."""

    parts: WorkerParts
    job: Job
    prefix: str
    request: TrainingRequest
    files: TrainingFiles
    before: ModelVersion
    after: ModelVersion
    ends: float

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() >= self.ends + _GRACE_SECONDS


class _PhaseClock:
    """Counts the time that is spent on a phase, over all slices, and records about once a second how far it is.

    `upgrade_waits` says whether an upgrade needed workers then.
    """

    def __init__(self, time_slice: _Slice, name: str, unit: str) -> None:
        self._slice = time_slice
        self._name = name
        self._unit = unit
        self.losses: Sequence[float] = phases_of(time_slice.job)[name].losses
        self._seconds_before = phases_of(time_slice.job)[name].seconds
        self._began = time.monotonic()
        self._next = self._began + _RECORD_SECONDS
        self.upgrade_waits = False

    def __call__(self, done: int, total: int, *, at_once: bool = False) -> None:
        """Record, if it is time. Raises `TrainingEnded` when the training is not wanted any more."""
        now = time.monotonic()
        if now < self._next and done < total and not at_once:
            return
        self._next = now + _RECORD_SECONDS
        phase = training_phase(done, total, self._unit, self._seconds_before + now - self._began, self.losses)
        with self._slice.parts.database.session_scope() as session:
            record_phase(session, self._slice.job.id, self._name, phase)
            self.upgrade_waits = upgrade_needs_workers(session)


def scratch_folder(settings: Settings) -> Path:
    """Return where this machine keeps the state of a training between two epochs."""
    return settings.data / FOLDER


def advance_training(parts: WorkerParts, job_id: int) -> bool:
    """Work on a training for one time slice; return whether there is more that this worker could do now."""
    with parts.database.advisory_lock(AdvisoryLock.TRAINING, job_id) as mine:
        if not mine:
            return False
        lack = shortage(parts.settings)
        with parts.database.session_scope() as session:
            if lack is not None:
                record_shortage(session, job_id, lack)
                return False
            job = begin_slice(session, job_id, parts.settings)

        try:
            if job is not None:
                with all_cores(parts.settings):
                    _run(parts, job)
        except _SliceEnded:
            with parts.database.session_scope() as session:
                end_slice(session, job_id)
            return True
        except TrainingEnded:
            events.info("training.not_wanted", job_id=job_id)
        except Unprocessable as error:  # trying again would not help
            with parts.database.session_scope() as session:
                fail_training(session, job_id, error.message)
        except Exception as error:  # any slice may fail; recorded, and tried again after a pause
            if is_outage(error):
                raise
            events.exception("training.slice_failed", error, job_id=job_id)
            with parts.database.session_scope() as session:
                record_failed_attempt(session, job_id, f"{type(error).__name__}: {error}")

    parts.training.forget()
    remove_files_of_ended(parts.database, parts.blobs, scratch_folder(parts.settings))
    return False


def _run(parts: WorkerParts, job: Job) -> None:
    """Go on until the training is registered. Raises `_SliceEnded` when the time is over before."""
    assert job.file_prefix is not None
    request = TrainingRequest.of(job)
    with parts.database.session_scope() as session:
        before, after = versions_of(session, request)
    files = TrainingFiles(parts.blobs, job.file_prefix)
    ends = time.monotonic() + parts.settings.task_slice_seconds
    time_slice = _Slice(parts, job, job.file_prefix, request, files, before, after, ends)

    # 1.
    if isinstance(request.learns_from, ListedImages):
        _encode(time_slice, request.learns_from)

    # 2.
    precision = parts.settings.precision or fastest_precision(parts.settings.device)
    config = TransformationTraining(**request.options, precision=precision)
    rows = parts.training.keep(job.file_prefix, "rows", lambda: _load(time_slice, config.seed))
    h = parts.training.keep(job.file_prefix, "h", lambda: _train(time_slice, "h", rows.h, config))
    g = None
    if request.with_g:
        assert rows.g is not None
        g = _train(time_slice, "g", rows.g, config)

    # 3.
    _register(time_slice, rows, config, h, g)


def _encode(time_slice: _Slice, listed: ListedImages) -> None:
    """Encode what is not encoded yet, a batch at a time."""
    parts, total = time_slice.parts, listed.images
    done = max((row_range.end for row_range in time_slice.files.row_ranges()), default=0)
    if done >= total:
        return

    clock = _PhaseClock(time_slice, "encoding", "images")
    images = parts.training.keep(time_slice.prefix, "images", lambda: _find_images(time_slice, listed))
    encoders = parts.training.keep(time_slice.prefix, "encoders", lambda: Encoders(parts.blobs, parts.settings))
    with parts.database.session_scope() as session:
        chained = chained_sources(session, time_slice.request.chained_transformations)

    remaining = images.read(done)
    while batch := list(islice(remaining, parts.settings.encode_batch_items)):
        time_slice.files.add_rows(done, done + len(batch), _encode_batch(time_slice, encoders, chained, batch))
        done += len(batch)
        clock(done, total, at_once=time_slice.is_over)
        if time_slice.is_over or clock.upgrade_waits:
            raise _SliceEnded


def _find_images(time_slice: _Slice, listed: ListedImages) -> ImageSet:
    """Return the images that were there when the training was asked for. Raises `Unprocessable` if they are not."""
    name = time_slice.request.dataset
    assert name is not None
    images = find_dataset(time_slice.parts.settings.datasets, name)
    if isinstance(images, PairFiles) or images.listing_sha256() != listed.listing_sha256:
        raise TrainingRefused(f"Data set {name!r} changed since the training was asked for.")
    return images


def _encode_batch(
    time_slice: _Slice, encoders: Encoders, chained: Sequence[ChainedSource], batch: list[LabelledImage]
) -> FeatureRows:
    """Return the features of those images of a batch that can be read. Raises `ChainBroken`."""
    readable, labels = [], []
    versions = [time_slice.before, time_slice.after, *(source.version for source in chained)]
    preprocessings = [encoders.get(version).preprocessing for version in versions]
    for image in batch:
        try:
            readable.append(encoders.images.reduce(image.data, preprocessings))
        except InvalidImage as error:
            events.info("training.image_skipped", job_id=time_slice.job.id, label=image.label, reason=error.message)
            continue
        labels.append(image.label)

    before, after = (
        encoders.get(version).encode(readable) if readable else _nothing(version)
        for version in (time_slice.before, time_slice.after)
    )
    given = [
        _transformed(time_slice, encoders, source, readable) if readable else _nothing(time_slice.before)
        for source in chained
    ]
    given_sides = [rows.side_information for rows in given if rows.side_information is not None]
    digests = b"".join(hashlib.sha256(image.data).digest() for image in batch)
    return FeatureRows(
        embedding_from=before.embedding,
        side_information_from=before.side_information,
        embedding_to=after.embedding,
        side_information_to=after.side_information,
        labels=label_numbers(labels),
        chained_embedding_from=np.stack([rows.embedding for rows in given]) if given else None,
        chained_side_information_from=np.stack(given_sides) if given_sides else None,
        source_sha256=np.frombuffer(digests, np.uint8).reshape(-1, 32),
    )


def _transformed(time_slice: _Slice, encoders: Encoders, source: ChainedSource, images: list[ReducedImage]) -> Encoded:
    """Return what a chained transformation gives for images: rows of the version that the training leads from."""
    encoded = encoders.get(source.version).encode(images)
    networks, number = time_slice.parts.networks, source.transformation_id
    found = Encoded(*networks.apply(number, encoded.embedding, encoded.side_information))
    if not all(np.isfinite(values).all() for values in (found.embedding, found.side_information) if values is not None):
        raise ChainBroken(
            f"Transformation {number} gave values that are not finite for an image: delete it, or set options.chained"
            " to false."
        )
    return found


def _nothing(version: ModelVersion) -> Encoded:
    side_dim = version.side_information_dim
    return Encoded(
        np.empty((0, version.embedding_dim), np.float32),
        None if side_dim is None else np.empty((0, side_dim), np.float32),
    )


def _load(time_slice: _Slice, seed: int) -> TrainingRows:
    ranges = time_slice.files.row_ranges()
    count = sum(row_range.count for row_range in ranges)
    if count < LEAST_ROWS:
        raise TrainingRefused(f"A training needs at least {LEAST_ROWS} images; {count} could be read.")
    device = time_slice.parts.settings.device
    return load_rows(time_slice.files, ranges, time_slice.before, time_slice.after, seed, device)


def _train(
    time_slice: _Slice, name: Literal["h", "g"], pairs: PairedFeatures, config: TransformationTraining
) -> FittedTransformation:
    """Return the network, when it is trained to the end. Raises `_SliceEnded` when the time is over before."""
    scratch = scratch_folder(time_slice.parts.settings) / f"{time_slice.prefix}.{name}"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    stored = time_slice.files.newest_checkpoint(name)
    found = load_checkpoint_if_whole(scratch)
    if stored != ((0, 0) if found is None else position_of(found)):
        scratch.unlink(missing_ok=True)
        if stored != (0, 0):
            time_slice.files.fetch_checkpoint(name, stored, scratch)

    clock = _PhaseClock(time_slice, f"training_{name}", "epochs")
    epochs_done = stored.epochs

    def progress(done: int, total: int, losses: Sequence[float]) -> None:
        nonlocal epochs_done
        epochs_done, clock.losses = done, losses
        stops_here = (time_slice.is_over or clock.upgrade_waits) and done < total
        if stops_here or done == total:
            time_slice.files.store_checkpoint(name, TrainedTo(done, 0), scratch)
        clock(done, total, at_once=stops_here)
        if stops_here:
            raise _SliceEnded

    def pause() -> bool:
        clock(epochs_done, config.epochs)
        return clock.upgrade_waits or time_slice.is_overdue

    try:
        return train_transformation(
            pairs,
            config,
            progress,
            scratch,
            pause=pause,
            with_uncertainty=name == "h",
            unit_norm=name == "h" and time_slice.after.normalize,
        )
    except Paused:
        paused = load_checkpoint_if_whole(scratch)
        if paused is not None:  # else what was there before stays what is gone on from
            time_slice.files.store_checkpoint(name, TrainedTo(*position_of(paused)), scratch)
        raise _SliceEnded from None


def _register(
    time_slice: _Slice,
    rows: TrainingRows,
    config: TransformationTraining,
    h: FittedTransformation,
    g: FittedTransformation | None,
) -> None:
    """Measure what was trained and register it."""
    clock = _PhaseClock(time_slice, "evaluating", "evaluation")
    clock(0, 1, at_once=True)
    parts = time_slice.parts
    h_bytes, g_bytes = save_network(h.network), None if g is None else save_network(g.network)
    linear = h.network.linear_alone()
    metrics = held_out_metrics(
        rows.held_out,
        _applied(time_slice, h_bytes, time_slice.after.embedding_dim),
        None if g_bytes is None else _applied(time_slice, g_bytes, time_slice.after.side_information_dim),
        None if linear is None else _applied(time_slice, save_network(linear), time_slice.after.embedding_dim),
        chained_transformations=time_slice.request.chained_transformations,
        normalize=time_slice.after.normalize,
        device=parts.settings.device,
    )
    clock(1, 1)

    trained = TrainedTransformation(
        h=h_bytes,
        g=g_bytes,
        recipe=config.recipe,
        seed=config.seed,
        options=asdict(config),
        choices={"h": h.choices, "g": None if g is None else g.choices},
        rows=len(rows.h),
        held_out_rows=len(rows.held_out),
        images_skipped=rows.skipped,
        images_sha256=rows.images_sha256,
        metrics=metrics,
    )
    with parts.database.session_scope() as session:
        complete_training(NetworkStore(session, parts.blobs, parts.settings), time_slice.job.id, trained)


def _applied(time_slice: _Slice, data: bytes, to_dim: int | None) -> TransformationNetwork:
    """Return a network as upgrades run it, in float32. Raises `TrainingRefused` when it learned nothing finite."""
    assert to_dim is not None
    settings = time_slice.parts.settings
    try:
        return load_network(data, time_slice.before, to_dim, settings, settings.device)
    except ArtifactError as error:
        raise TrainingRefused(f"What was learned cannot be used: {error} A lower learning_rate may help.") from error
