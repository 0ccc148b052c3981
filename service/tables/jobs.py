"""Long work that is no upgrade, ingests by reference and erasures."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.domain.batch_state import BatchState
from service.domain.job_state import UNFINISHED, JobState
from service.identity import DEFAULT_TENANT
from service.tables.columns import Base, ClaimedRow, JobKind, Json, one_of
from service.tables.galleries import Gallery, Generation
from service.tables.upgrades import Upgrade


class Job(Base):
    """Long work that is not an upgrade, or a part of one; its states are in `service.domain.job_state`.

    `speed` is the share of the time that each worker works on an ingest. Of a training, `request` is what was asked
    for, `file_prefix` begins the names of its files in the blob store, and `attempts` counts the time slices that were
    begun since one was brought to its end.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    kind: Mapped[JobKind]
    state: Mapped[JobState]
    gallery_id: Mapped[int | None] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    generation_id: Mapped[int | None] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    upgrade_id: Mapped[int | None] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    request: Mapped[Json | None]
    file_prefix: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    speed: Mapped[float] = mapped_column(server_default=text("1"))
    progress: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    result: Mapped[Json | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("speed BETWEEN 0 AND 1", name="speed"),
        Index("ix_jobs_unfinished", "id", postgresql_where=text(one_of("state", sorted(UNFINISHED)))),
    )


class IngestBatch(ClaimedRow):
    """The images of an ingest from one position of its list to another, both included, and how many of them became
    what once it is done."""

    __tablename__ = "ingest_batches"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"))
    first_position: Mapped[int]
    last_position: Mapped[int]
    created: Mapped[int] = mapped_column(server_default=text("0"))
    replaced: Mapped[int] = mapped_column(server_default=text("0"))
    rejected: Mapped[int] = mapped_column(server_default=text("0"))

    __table_args__ = (
        CheckConstraint(one_of("state", BatchState), name="state"),
        Index(None, "job_id", "state", "id"),
    )


class IngestReference(Base):
    """An image that an ingest is yet to read, or that it rejected for a `reason`; one that was stored has no row."""

    __tablename__ = "ingest_references"

    job_id: Mapped[int] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    external_id: Mapped[str]
    image_uri: Mapped[str]
    label: Mapped[str | None]
    metadata_: Mapped[Json] = mapped_column("metadata")
    reason: Mapped[str | None]


class Erasure(Base):
    """What an erasure is still to remove of one gallery; gone when that is done. Without `names`, it is all of it.

    `step` counts the steps that are done (`service.domain.erasure.work`). `item_ids`, `image_digests` and `revision`,
    the gallery's, are what the first one found. No foreign key leads to the gallery, which may go on the way.
    """

    __tablename__ = "erasures"

    job_id: Mapped[int] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    gallery: Mapped[str]
    names: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    step: Mapped[int] = mapped_column(server_default=text("0"))
    item_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    image_digests: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    revision: Mapped[int] = mapped_column(server_default=text("0"))
