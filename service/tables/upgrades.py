"""Upgrades, their batches and the changes of their states."""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.column_types import Leg
from service.domain.batch_state import BatchState
from service.domain.decision import Decision
from service.domain.guardrails import Bake, BakeResult
from service.domain.refused_rows import RefusedItems
from service.domain.upgrade_state import OPEN, State
from service.tables.columns import Base, BatchPhase, ClaimedRow, CutoverOption, Json, one_of
from service.tables.galleries import Gallery, Generation


class Upgrade(Base):
    """The job that derives the next generation; its states are in `service.domain.upgrade_state`.

    `legs` are tried in order for every item: the first is the path of fewest hops, a second one starts at the active
    generation when the first does not. Every live item with a revision up to `verified_revision` has a current row in
    the next generation; `live_revision` is the gallery's revision at the cutover. `gates` replace or add to the default
    ones, and with `observe` no verdict holds anything up. `evaluate_seed` is that of a report that was asked for and is
    not written yet. `decision` is on what verdict it goes live, or went, and who wanted it.

    `smoothing` is how its rows are smoothed (`service.domain.upgrade.smoothing.Smoothing`), null where they stay as h
    made them; those up to `smoothed_revision` are, by the index file with the digest `smoothed_index`.

    `canary` is the share of image queries that the next generation answers while the upgrade is ready, and 0 in every
    other state; of those queries, it answered `canary_answered`, and could not answer `canary_failed`. `bake` is how it
    is watched after its cutover (`service.domain.guardrails.Bake`), which lasts
    until `bake_ends_at`, or until `bake_result` says how it ended. `trace` is where the request that asked for it was
    traced, as a `traceparent` of W3C's Trace Context.
    """

    __tablename__ = "upgrades"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    from_generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    to_generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    legs: Mapped[list[Leg]]
    cutover: Mapped[CutoverOption]
    speed: Mapped[float] = mapped_column(server_default=text("1"))
    state: Mapped[State]
    resume_state: Mapped[State | None]
    start_revision: Mapped[int]
    verified_revision: Mapped[int] = mapped_column(server_default=text("0"))
    live_revision: Mapped[int | None]
    batches_planned_at: Mapped[datetime | None]
    cutover_requested_at: Mapped[datetime | None]
    gates: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    observe: Mapped[bool] = mapped_column(server_default=text("false"))
    smoothing: Mapped[Json | None]
    smoothed_revision: Mapped[int | None]
    smoothed_index: Mapped[str | None]
    evaluate_seed: Mapped[int | None]
    evaluate_asked_at: Mapped[datetime | None]
    decision: Mapped[Decision | None]
    canary: Mapped[float] = mapped_column(server_default=text("0"))
    canary_answered: Mapped[int] = mapped_column(server_default=text("0"))
    canary_failed: Mapped[int] = mapped_column(server_default=text("0"))
    bake: Mapped[Bake | None]
    bake_ends_at: Mapped[datetime | None]
    bake_result: Mapped[BakeResult | None]
    error: Mapped[str | None]
    trace: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    live_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("cutover", get_args(CutoverOption)), name="cutover"),
        CheckConstraint("speed BETWEEN 0 AND 1", name="speed"),
        CheckConstraint("canary BETWEEN 0 AND 1", name="canary"),
        Index(
            "uq_upgrades_open",
            "gallery_id",
            unique=True,
            postgresql_where=text(one_of("state", (state for state in State if state in OPEN))),
        ),
    )


class UpgradeBatch(ClaimedRow):
    """A range of item ids, both ends included, that held `items` items to transform when it was planned.

    `rows` is how many rows it wrote. `refused` names items whose transformed vectors cannot be stored, and counts them;
    while it is set, the batch waits for a retry of the upgrade.
    """

    __tablename__ = "upgrade_batches"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    phase: Mapped[BatchPhase]
    first_item_id: Mapped[int]
    last_item_id: Mapped[int]
    items: Mapped[int]
    rows: Mapped[int] = mapped_column(server_default=text("0"))
    refused: Mapped[RefusedItems | None]

    __table_args__ = (
        CheckConstraint(one_of("state", BatchState), name="state"),
        CheckConstraint(one_of("phase", get_args(BatchPhase)), name="phase"),
        Index(None, "upgrade_id", "state", "id"),
    )


class UpgradeEvent(Base):
    """One change of an upgrade's state, or with a `note` of what is tried of it in that state: its canary, its bake.
    Written with the change, so that ids ascend in the order of the changes."""

    __tablename__ = "upgrade_events"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    state: Mapped[State]
    error: Mapped[str | None]
    note: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "upgrade_id", "id"),)
