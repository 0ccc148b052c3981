"""Backfills, their items and the changes of their states."""

from datetime import datetime
from typing import ClassVar, get_args

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.domain.backfill_state import OPEN as OPEN_BACKFILL
from service.domain.backfill_state import BackfillState
from service.domain.batch_state import UNFINISHED as UNFINISHED_WORK
from service.domain.batch_state import BatchState
from service.tables.columns import BackfillOrder, BackfillOutcome, BackfillSource, Base, ClaimedRow, Json, one_of
from service.tables.galleries import Gallery, Generation


class Backfill(Base):
    """The job that encodes items of a generation again from pixels; its states are in `service.domain.backfill_state`.

    `items` of the `candidates` that h made are to be done, in `order`; `seconds` is the time that it may take of its
    workers, null without such a budget, and `spent_seconds` what it took. `seed` is the random order's. `least_error`
    is the error of h, as h expects it, above which a thumbnail is worth more: null where every one is.
    """

    __tablename__ = "backfills"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    source: Mapped[BackfillSource]
    order: Mapped[BackfillOrder]
    seed: Mapped[int]
    candidates: Mapped[int]
    items: Mapped[int]
    seconds: Mapped[float | None]
    spent_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    least_error: Mapped[float | None]
    simulation: Mapped[Json]
    speed: Mapped[float] = mapped_column(server_default=text("1"))
    state: Mapped[BackfillState]
    resume_state: Mapped[BackfillState | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("source", get_args(BackfillSource)), name="source"),
        CheckConstraint(one_of('"order"', get_args(BackfillOrder)), name="order"),
        CheckConstraint("speed BETWEEN 0 AND 1", name="speed"),
        Index(
            "uq_backfills_open",
            "generation_id",
            unique=True,
            postgresql_where=text(one_of("state", (state for state in BackfillState if state in OPEN_BACKFILL))),
        ),
    )


class BackfillItem(ClaimedRow):
    """An item of a backfill, at its place in the order. `error` is why it was refused once it is done, before that why
    its last try failed. No foreign key leads to the item: rows of items go with their gallery alone, as these do."""

    __tablename__ = "backfill_items"

    backfill_id: Mapped[int] = mapped_column(ForeignKey(Backfill.id, ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int]
    outcome: Mapped[BackfillOutcome | None]

    __table_args__ = (
        UniqueConstraint("backfill_id", "item_id"),
        CheckConstraint(one_of("state", BatchState), name="state"),
        CheckConstraint(one_of("outcome", get_args(BackfillOutcome)), name="outcome"),
        Index(
            "ix_backfill_items_open",
            "backfill_id",
            "position",
            postgresql_where=text(one_of("state", (state for state in BatchState if state in UNFINISHED_WORK))),
        ),
    )


class BackfillEvent(Base):
    """One change of a backfill's state; written with it, so that ids ascend in the order of the changes."""

    __tablename__ = "backfill_events"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    backfill_id: Mapped[int] = mapped_column(ForeignKey(Backfill.id, ondelete="CASCADE"))
    note: ClassVar[None] = None  # nothing but its states, where an upgrade has a canary and a bake too
    state: Mapped[BackfillState]
    error: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "backfill_id", "id"),)
