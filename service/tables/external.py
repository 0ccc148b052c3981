"""Upgrades of galleries in other stores: what is known of them here, which is never a vector of theirs but the evidence
that an upgrade is judged by."""

from datetime import datetime
from typing import ClassVar, get_args

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, LargeBinary, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.connectors.store import Description
from service.domain.batch_state import UNFINISHED as UNFINISHED_WORK
from service.domain.batch_state import BatchState
from service.domain.decision import Decision
from service.domain.external_findings import Conflicts, Findings, Late
from service.domain.external_state import ExternalState
from service.domain.refused_rows import RefusedKeys
from service.domain.verdict import Verdict
from service.identity import DEFAULT_TENANT
from service.tables.columns import Base, ClaimedRow, CutoverOption, one_of
from service.tables.versions import ModelVersion, Transformation


class ExternalUpgrade(Base):
    """The job that upgrades a gallery in another store; its states are in `service.domain.external_state`.

    `store` is a name of `GALLERY_STORES`: where it is, and with which password, is in no row. `side_name` is the new
    side's in the store, and `description` what the store said of the old one. Its ranges of keys are gone over in
    passes, of which `pass_number` is the newest; `changed_ranges` of the one before had been written meanwhile, and
    `passed_at` is when it ended. `findings` are those of the verification. `evaluate_seed` is that of a report that was
    asked for and is not written yet, and `decision` on what verdict it goes live, or went, and who wanted it.
    `followed_at` is when what was written around the switch had been looked at, and `late` what that found;
    `cleaned_at` when what the upgrade left in the store was removed: until then the store is its own.
    """

    __tablename__ = "external_upgrades"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    store: Mapped[str]
    side_name: Mapped[str]
    from_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    to_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    transformation_id: Mapped[int] = mapped_column(ForeignKey(Transformation.id))
    description: Mapped[Description]
    batch_rows: Mapped[int]
    cutover: Mapped[CutoverOption]
    speed: Mapped[float] = mapped_column(server_default=text("1"))
    state: Mapped[ExternalState]
    resume_state: Mapped[ExternalState | None]
    pass_number: Mapped[int] = mapped_column(server_default=text("0"))
    changed_ranges: Mapped[int | None]
    passed_at: Mapped[datetime | None]
    findings: Mapped[Findings | None]
    late: Mapped[Late | None]
    evaluate_seed: Mapped[int | None]
    cutover_requested_at: Mapped[datetime | None]
    decision: Mapped[Decision | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    live_at: Mapped[datetime | None]
    followed_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cleaned_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("cutover", get_args(CutoverOption)), name="cutover"),
        CheckConstraint("speed BETWEEN 0 AND 1", name="speed"),
        Index("uq_external_upgrades_store", "store", unique=True, postgresql_where=text("cleaned_at IS NULL")),
    )


class ExternalBatch(ClaimedRow):
    """Rows of a store with `after` < key <= `upto`, in the store's order; null is an end that is open.

    The digests are of the ids, of what was read, and of what the new side gave back after it was written; those of a
    pass that is not done are of the one before, null in the first. A range is `changed` if it was transformed anew,
    and `repaired` if nothing but the new side was other than it was left. `sampled` rows were transformed anew to be
    compared; `largest_difference` is relative to a row's norm. `refused` counts and names keys of rows that cannot be
    transformed: while it is set, the range waits for a retry. `conflicts` are keys whose sides
    differ after the switch, of a range that was written on the old side around it.
    """

    __tablename__ = "external_batches"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(ExternalUpgrade.id, ondelete="CASCADE"), primary_key=True)
    pass_number: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    after: Mapped[str | None]
    upto: Mapped[str | None]
    references_wanted: Mapped[int] = mapped_column(server_default=text("0"))
    rows: Mapped[int] = mapped_column(server_default=text("0"))
    id_digest: Mapped[str | None]
    read_digest: Mapped[str | None]
    written_digest: Mapped[str | None]
    changed: Mapped[bool] = mapped_column(server_default=text("false"))
    repaired: Mapped[bool] = mapped_column(server_default=text("false"))
    sampled: Mapped[int] = mapped_column(server_default=text("0"))
    largest_difference: Mapped[float] = mapped_column(server_default=text("0"))
    refused: Mapped[RefusedKeys | None]
    conflicts: Mapped[Conflicts | None]

    __table_args__ = (
        CheckConstraint(one_of("state", BatchState), name="state"),
        Index(
            "ix_external_batches_open",
            "upgrade_id",
            "number",
            postgresql_where=text(one_of("state", (state for state in BatchState if state in UNFINISHED_WORK))),
        ),
    )


class ExternalReference(Base):
    """A row of a store that was drawn to judge its upgrade by, at the range that has its key: `embedding_to`, (D,)
    float32, little-endian, is what φ_new gives for its image, null until it is given. It is evidence, as
    `reference_pairs` are for galleries here, and the one vector that is kept of a row of another store."""

    __tablename__ = "external_references"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(ExternalUpgrade.id, ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    embedding_to: Mapped[bytes | None] = mapped_column(LargeBinary)


class ExternalReport(Base):
    """What judging an upgrade of another store found, never changed: `content` is JSON."""

    __tablename__ = "external_reports"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(ExternalUpgrade.id, ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    verdict: Mapped[Verdict]
    evidence: Mapped[int]
    content: Mapped[str]
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint(one_of("verdict", Verdict), name="verdict"),)


class ExternalEvent(Base):
    """One change of the state of an upgrade of another store; written with it, so that ids ascend in the order of the
    changes."""

    __tablename__ = "external_events"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    upgrade_id: Mapped[int] = mapped_column(ForeignKey(ExternalUpgrade.id, ondelete="CASCADE"))
    note: ClassVar[None] = None  # nothing but its states
    state: Mapped[ExternalState]
    error: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "upgrade_id", "id"),)
