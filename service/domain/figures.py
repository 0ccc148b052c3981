"""What `/metrics` says of rows, the broker, the disk and this process's replicas.

One thread looks every so many seconds and keeps what it found; a scrape reads that, and asks neither the database nor
the broker. So it costs as much with a thousand galleries as with one, and answers while the database is away. Galleries
have labels of their own up to a number; the others, the newest, share the label `other`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.disk import free_bytes
from service.domain.backfill.progress import progress_of as progress_of_backfills
from service.domain.backfill_state import WORKING as WORKING_BACKFILL
from service.domain.batch_state import BatchState
from service.domain.job_state import UNFINISHED, JobState
from service.domain.jobs import INDEX_BUILD, INGEST, TRAINING
from service.domain.judging.drift import DriftWatch
from service.domain.judging.reports import newest_reports
from service.domain.training.trainings import phases_of
from service.domain.upgrade.progress import progress_of
from service.domain.upgrade.upgrades import count_batches, count_upgrades
from service.domain.upgrade_state import OPEN, WORKING, State
from service.domain.verdict import Verdict
from service.errors import Unavailable
from service.identity import DEFAULT_TENANT
from service.index.kinds import bytes_per_row
from service.index.protocol import IndexKind
from service.index.replica import Replicas
from service.queue import TaskQueue
from service.settings import Settings
from service.tables import (
    Backfill,
    BackfillItem,
    ClaimedRow,
    Gallery,
    Generation,
    IngestBatch,
    Job,
    ModelVersion,
    Upgrade,
    UpgradeBatch,
)

events = logs.Events(__name__)

OTHER = "other"


class Figure(NamedTuple):
    """A gauge: its name, what it means, and its labels."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


DATABASE_UP = Figure("gallery_database_up", "Whether the database answered the last look (1 or 0)")
BROKER_UP = Figure("gallery_broker_up", "Whether the broker answered the last look (1 or 0)")
LOOK_AGE = Figure(
    "gallery_figures_age_seconds", "How long ago the database was last read for the figures of rows below"
)
QUEUE = Figure("gallery_queue_messages", "Messages to workers that wait at the broker")
DISK_FREE = Figure("gallery_disk_free_bytes", "Bytes that are free on the data folder's disk")
DISK_RESERVE = Figure("gallery_disk_reserve_bytes", "Free bytes below which nothing is stored")
DRIFTED = Figure(
    "gallery_drifted_galleries", "Galleries whose encoder gives other embeddings here than it gave (the log names them)"
)
GALLERIES = Figure("gallery_galleries", "Galleries that there are")
ITEMS = Figure("gallery_items", "Live items", ("gallery",))
VECTORS = Figure("gallery_index_vectors", "Vectors in the active index of this process", ("gallery",))
INDEX_BYTES = Figure(
    "gallery_index_bytes", "About how much memory the active index takes here, by its kind and vectors", ("gallery",)
)
RECALL = Figure(
    "gallery_index_recall", "recall@10 that was measured when the active index's file was built", ("gallery",)
)
LAG = Figure("gallery_replica_lag_revisions", "Revisions that this process's replica is behind the rows", ("gallery",))
UPGRADES = Figure("gallery_upgrades", "Upgrades by state", ("state",))
BATCHES = Figure("gallery_upgrade_batches", "Batches of upgrades by state", ("state",))
PROGRESS = Figure(
    "gallery_upgrade_progress_ratio", "Share of an open upgrade's phase that is done", ("gallery", "phase")
)
ETA = Figure("gallery_upgrade_eta_seconds", "Seconds until an open upgrade's phase is done", ("gallery", "phase"))
IDLE = Figure(
    "gallery_upgrade_idle_seconds",
    "How long ago an upgrade that is at work last changed: its state, its speed, a batch, a part of its index",
    ("gallery",),
)
VERDICT = Figure(
    "gallery_upgrade_verdict", "1 for the verdict of an open upgrade's newest report", ("gallery", "verdict")
)
JOBS = Figure("gallery_jobs", "Jobs by kind and state", ("kind", "state"))
WAITING = Figure("gallery_work_waiting", "Work that nobody has claimed yet", ("work",))
LEASE = Figure(
    "gallery_lease_overdue_seconds",
    "How long ago the oldest lease ended of claimed work that is neither done nor claimed by another; 0 without one",
    ("work",),
)
BACKFILL = Figure("gallery_backfill_progress_ratio", "Share of a backfill at work that is done", ("gallery",))
TRAINING_PROGRESS = Figure(
    "gallery_training_progress_ratio", "Share of an unfinished training's phase that is done", ("job", "phase")
)

FIGURES = (
    DATABASE_UP,
    BROKER_UP,
    LOOK_AGE,
    QUEUE,
    DISK_FREE,
    DISK_RESERVE,
    DRIFTED,
    GALLERIES,
    ITEMS,
    VECTORS,
    INDEX_BYTES,
    RECALL,
    LAG,
    UPGRADES,
    BATCHES,
    PROGRESS,
    ETA,
    IDLE,
    VERDICT,
    JOBS,
    WAITING,
    LEASE,
    BACKFILL,
    TRAINING_PROGRESS,
)

Values = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class _Known:
    """What the rows say of a gallery, and the label that its figures have."""

    label: str
    revision: int
    kind: IndexKind
    dim: int


@dataclass(frozen=True)
class _Found:
    """What one look found in rows: the values of figures by their labels, and galleries by id."""

    values: dict[Figure, Values] = field(default_factory=dict)
    galleries: dict[int, _Known] = field(default_factory=dict)


class Figures:
    """Looks, keeps, and is asked; one per API process, safe to use from many threads."""

    def __init__(
        self, database: Database, queue: TaskQueue, replicas: Replicas, drift: DriftWatch, settings: Settings
    ) -> None:
        self._database = database
        self._queue = queue
        self._replicas = replicas
        self._drift = drift
        self._settings = settings
        self._found = _Found()
        self._looked_at: float | None = None
        self._database_up = self._broker_up = False
        self._messages = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)

    def start(self) -> None:
        """Look now, and again and again, in the background; never, where `Settings.metrics_every_seconds` is 0."""
        if self._settings.metrics_every_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def look(self) -> None:
        """Read the rows and ask the broker; what cannot be had is said to be away, and what was known before stays."""
        try:
            with self._database.session_scope(snapshot=True) as session:
                self._found = _read(session, self._settings.metrics_galleries)
            self._looked_at, self._database_up = time.monotonic(), True
        except Exception as error:  # noqa: BLE001 - this thread outlives any failure; logged once, then tried again
            if self._database_up or self._looked_at is None:
                events.warning("figures.database_away", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            self._database_up = False
        try:
            self._messages, self._broker_up = self._queue.waiting(), True
        except Unavailable:
            self._broker_up = False

    def text(self) -> str:
        """Return every figure as it was found, and those of this process's memory and disk as they are, in the text
        format of Prometheus; its library would take several times as long to write those of many galleries."""
        found = self._found
        values = {**found.values, **self._of_process(), **self._of_replicas(found.galleries)}
        lines: list[str] = []
        for figure in FIGURES:
            lines += (f"# HELP {figure.name} {figure.meaning}", f"# TYPE {figure.name} gauge")
            lines += (
                f"{figure.name}{_shown(figure, labels)} {value}" for labels, value in values.get(figure, {}).items()
            )
        return "\n".join([*lines, ""])

    def _run(self) -> None:
        while True:
            self.look()
            if self._stopping.wait(self._settings.metrics_every_seconds):
                return

    def _of_process(self) -> dict[Figure, Values]:
        values = {
            DATABASE_UP: float(self._database_up),
            BROKER_UP: float(self._broker_up),
            QUEUE: float(self._messages),
            DISK_FREE: float(free_bytes(self._settings)),
            DISK_RESERVE: float(self._settings.disk_reserve_bytes),
            DRIFTED: float(len(self._drift.alarms)),
        }
        if self._looked_at is not None:
            values[LOOK_AGE] = time.monotonic() - self._looked_at
        return {figure: {(): value} for figure, value in values.items()}

    def _of_replicas(self, galleries: dict[int, _Known]) -> dict[Figure, Values]:
        sizes, revisions = self._replicas.sizes(), self._replicas.revisions()
        vectors, taken, lag = [], [], []
        for id_, known in galleries.items():
            if id_ in sizes:
                vectors.append(((known.label,), float(sizes[id_])))
                taken.append(((known.label,), float(sizes[id_] * bytes_per_row(known.kind, known.dim))))
            lag.append(((known.label,), float(max(0, known.revision - max(0, revisions.get(id_, 0))))))
        return {VECTORS: _joined(vectors, sum), INDEX_BYTES: _joined(taken, sum), LAG: _joined(lag, max)}


def _shown(figure: Figure, labels: tuple[str, ...]) -> str:
    """Return labels as they are written; names of galleries, tenants and states have nothing to be escaped."""
    pairs = ",".join([f'{name}="{value}"' for name, value in zip(figure.labels, labels, strict=True)])
    return f"{{{pairs}}}" if pairs else ""


def _joined(values: Iterable[tuple[tuple[str, ...], float]], join: Callable[[Sequence[float]], float]) -> Values:
    """Return one value for all that have the same labels."""
    found: dict[tuple[str, ...], list[float]] = {}
    for labels, value in values:
        found.setdefault(labels, []).append(value)
    return {labels: join(each) for labels, each in found.items()}


def _read(session: Session, labelled: int) -> _Found:
    """Read the rows; the first `labelled` galleries, by id, have labels of their own: their names, after the tenant's
    where that is not the default one."""
    rows = session.execute(
        select(
            Gallery.id,
            Gallery.tenant,
            Gallery.name,
            Gallery.revision,
            Gallery.items,
            Generation.index_parameters["kind"].as_string().label("kind"),
            Generation.index_parameters["recall_at_10"].as_float().label("recall"),
            ModelVersion.embedding_dim.label("dim"),
        )
        .outerjoin(Generation, Generation.id == Gallery.active_generation_id)
        .outerjoin(ModelVersion, ModelVersion.id == Generation.model_version_id)
        .order_by(Gallery.id)
    ).all()
    labels = {row.id: _label(row.tenant, row.name) if place < labelled else OTHER for place, row in enumerate(rows)}
    values: dict[Figure, Values] = {
        GALLERIES: {(): float(len(rows))},
        ITEMS: _joined((((labels[row.id],), float(row.items)) for row in rows), sum),
        RECALL: _joined((((labels[row.id],), row.recall) for row in rows if row.recall is not None), min),
    }
    upgrades, batches = count_upgrades(session), count_batches(session)
    values[UPGRADES] = {(state.value,): float(upgrades.get(state.value, 0)) for state in State}
    values[BATCHES] = {(state.value,): float(batches.get(state.value, 0)) for state in BatchState}
    values |= _of_upgrades(session, labels)
    values[JOBS] = _jobs(session)
    values[WAITING], values[LEASE] = _waiting(session), _overdue(session)
    values[BACKFILL] = _backfills(session, labels)
    values[TRAINING_PROGRESS] = _trainings(session)
    known = {row.id: _Known(labels[row.id], row.revision, row.kind or "flat", row.dim or 0) for row in rows}
    return _Found(values, known)


def _label(tenant: str, name: str) -> str:
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


def _of_upgrades(session: Session, labels: dict[int, str]) -> dict[Figure, Values]:
    """Return the figures of upgrades that are open."""
    upgrades = session.scalars(select(Upgrade).where(Upgrade.state.in_(OPEN))).all()
    progress, reports = progress_of(session, upgrades), newest_reports(session, [upgrade.id for upgrade in upgrades])
    done, eta, verdicts = [], [], []
    for upgrade in upgrades:
        gallery = labels[upgrade.gallery_id]
        for name, phase in progress[upgrade.id].items():
            if phase.total:
                done.append(((gallery, name), phase.done / phase.total))
            if phase.eta_seconds is not None:
                eta.append(((gallery, name), phase.eta_seconds))
        verdict = reports[upgrade.id].verdict if upgrade.id in reports else None
        verdicts += [((gallery, each.value), float(each is verdict)) for each in Verdict]
    return {
        PROGRESS: _joined(done, min),
        ETA: _joined(eta, max),
        VERDICT: _joined(verdicts, max),
        IDLE: _idle(session, labels),
    }


def _idle(session: Session, labels: dict[int, str]) -> Values:
    batch = select(func.max(UpgradeBatch.done_at)).where(UpgradeBatch.upgrade_id == Upgrade.id).scalar_subquery()
    build = select(func.max(Job.updated_at)).where(Job.upgrade_id == Upgrade.id).scalar_subquery()
    last = func.greatest(Upgrade.updated_at, batch, build)  # it leaves out what is null
    query = select(Upgrade.gallery_id, func.extract("epoch", func.now() - last))
    rows = session.execute(query.where(Upgrade.state.in_(WORKING), Upgrade.speed > 0))
    return _joined((((labels[gallery_id],), float(seconds)) for gallery_id, seconds in rows), max)


def _jobs(session: Session) -> Values:
    rows = session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state))
    found = {(kind, state): float(count) for kind, state, count in rows}
    kinds = (INDEX_BUILD, TRAINING, INGEST)
    return {(kind, state.value): found.get((kind, state), 0.0) for kind in kinds for state in JobState}


# The tables of work that is claimed, and which of their rows somebody still wants done.
_CLAIMED: tuple[tuple[str, type[ClaimedRow], ColumnElement[bool]], ...] = (
    (
        "upgrade_batch",
        UpgradeBatch,
        UpgradeBatch.upgrade_id.in_(
            select(Upgrade.id).where(
                or_(and_(Upgrade.state.in_(WORKING), Upgrade.speed > 0), Upgrade.state == State.READY)
            )
        ),
    ),
    (
        "ingest_batch",
        IngestBatch,
        IngestBatch.job_id.in_(select(Job.id).where(Job.state.in_([JobState.QUEUED, JobState.RUNNING]), Job.speed > 0)),
    ),
    (
        "backfill_item",
        BackfillItem,
        BackfillItem.backfill_id.in_(
            select(Backfill.id).where(Backfill.state.in_(WORKING_BACKFILL), Backfill.speed > 0)
        ),
    ),
)


def _waiting(session: Session) -> Values:
    values: Values = {}
    for work, table, wanted in _CLAIMED:
        query = select(func.count()).select_from(table).where(wanted, table.state == BatchState.PENDING)
        values[work,] = float(session.scalar(query) or 0)
    queued = select(func.count()).select_from(Job).where(Job.kind == TRAINING, Job.state == JobState.QUEUED)
    values["training",] = float(session.scalar(queued) or 0)
    return values


def _overdue(session: Session) -> Values:
    values: Values = {}
    for work, table, wanted in _CLAIMED:
        since = func.max(func.extract("epoch", func.now() - table.lease_expires_at))
        overdue = session.scalar(select(since).where(wanted, table.state == BatchState.CLAIMED))
        values[work,] = max(0.0, float(overdue or 0))
    return values


def _backfills(session: Session, labels: dict[int, str]) -> Values:
    backfills = session.scalars(select(Backfill).where(Backfill.state.in_(WORKING_BACKFILL))).all()
    phases = {id_: found["encoding"] for id_, found in progress_of_backfills(session, backfills).items()}
    return _joined(
        (
            ((labels[backfill.gallery_id],), phases[backfill.id].done / phases[backfill.id].total)
            for backfill in backfills
            if phases[backfill.id].total
        ),
        min,
    )


def _trainings(session: Session) -> Values:
    jobs = session.scalars(select(Job).where(Job.kind == TRAINING, Job.state.in_(UNFINISHED)))
    return {
        (str(job.id), name): phase.done / phase.total
        for job in jobs
        for name, phase in phases_of(job).items()
        if phase.total
    }
