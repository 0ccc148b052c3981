"""What is shown of backfills beside their rows: the names around them, and their progress, counted from rows.

Many backfills are described together, by as many queries as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.domain.backfill.backfills import events_of, get_backfill
from service.domain.backfill_state import OPEN, WORKING
from service.domain.phases import Phase, phase_of, rate_of
from service.tables import Backfill, BackfillEvent, BackfillItem, Gallery, Generation, Item, ModelVersion


@dataclass(frozen=True)
class BackfillDetails:
    """A backfill with the names around it, its progress, and how many items came to which end."""

    backfill: Backfill
    gallery: str
    model_version: str
    progress: dict[str, Phase]
    outcomes: dict[str, int]


@dataclass(frozen=True)
class BackfillNews:
    """What happened to a backfill: its changes of state, and its progress. `ended` when its state
    will not change any more."""

    changes: list[BackfillEvent]
    progress: dict[str, Phase]
    ended: bool


@dataclass(frozen=True)
class RefusedItem:
    """An item that was refused, at its place in the order, and why."""

    position: int
    id: str
    reason: str


def describe_backfills(session: Session, backfills: Sequence[Backfill]) -> list[BackfillDetails]:
    """Return the details of backfills, by id."""
    ids = [backfill.id for backfill in backfills]
    query = (
        select(Backfill, Gallery.name, ModelVersion.name)
        .join(Gallery, Gallery.id == Backfill.gallery_id)
        .join(Generation, Generation.id == Backfill.generation_id)
        .join(ModelVersion, ModelVersion.id == Generation.model_version_id)
        .where(Backfill.id.in_(ids))
    )
    progress, outcomes = progress_of(session, backfills), _outcomes(session, ids)
    return [
        BackfillDetails(backfill, gallery, version, progress[backfill.id], outcomes[backfill.id])
        for backfill, gallery, version in session.execute(query.order_by(Backfill.id))
    ]


def news_of(session: Session, backfill_id: int) -> BackfillNews:
    """Return what happened to a backfill; in a session of one snapshot it fits together."""
    backfill = get_backfill(session, backfill_id)
    return BackfillNews(
        events_of(session, backfill_id),
        progress_of(session, [backfill])[backfill_id],
        backfill.state not in OPEN,
    )


def list_refused(session: Session, backfill_id: int, after_position: int, limit: int) -> list[RefusedItem]:
    """Return up to `limit` refused items after a place in the order, in order. Raises `UnknownBackfill` (404)."""
    get_backfill(session, backfill_id)
    query = (
        select(BackfillItem.position, Item.external_id, BackfillItem.error)
        .join(Item, Item.id == BackfillItem.item_id)
        .where(BackfillItem.backfill_id == backfill_id, BackfillItem.outcome == "refused")
        .where(BackfillItem.position > after_position)
        .order_by(BackfillItem.position)
        .limit(limit)
    )
    return [RefusedItem(row.position, row.external_id, row.error or "") for row in session.execute(query)]


def progress_of(session: Session, backfills: Sequence[Backfill]) -> dict[int, dict[str, Phase]]:
    """Return each backfill's one phase by its id; what rests (paused, failed, speed 0) has no estimate.

    The rate is that of all items since the state or the speed changed, until the last one of them.
    """
    since_change = BackfillItem.done_at > Backfill.updated_at
    query = (
        select(
            BackfillItem.backfill_id,
            func.count(BackfillItem.done_at),
            func.count().filter(since_change),
            func.extract("epoch", func.max(BackfillItem.done_at) - func.max(Backfill.updated_at)),
            func.extract("epoch", func.now() - func.max(BackfillItem.done_at)),
        )
        .join(Backfill, Backfill.id == BackfillItem.backfill_id)
        .where(BackfillItem.backfill_id.in_([backfill.id for backfill in backfills]))
        .group_by(BackfillItem.backfill_id)
    )
    counts = {row[0]: row[1:] for row in session.execute(query)}
    return {
        backfill.id: {"encoding": _phase(backfill, *counts.get(backfill.id, (0, 0, 0, 0)))} for backfill in backfills
    }


def _phase(backfill: Backfill, done: int, recent: int, seconds: float | None, since: float | None) -> Phase:
    rate = rate_of(recent, float(seconds)) if recent and seconds else None
    moving = backfill.state in WORKING and backfill.speed > 0
    return phase_of(done, backfill.items, "items", rate, since_seconds=float(since or 0), moving=moving)


def _outcomes(session: Session, backfill_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    query = (
        select(BackfillItem.backfill_id, BackfillItem.outcome, func.count())
        .where(BackfillItem.backfill_id.in_(backfill_ids), BackfillItem.outcome.is_not(None))
        .group_by(BackfillItem.backfill_id, BackfillItem.outcome)
    )
    found = {id_: {"backfilled": 0, "superseded": 0, "refused": 0} for id_ in backfill_ids}
    for backfill_id, outcome, count in session.execute(query):
        found[backfill_id][str(outcome)] = count
    return found
