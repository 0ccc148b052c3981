"""Work that is claimed from rows: batches of upgrades and ingests, items of backfills.

A claim is a token and a lease. Whoever works holds the claimed rows locked meanwhile, where it can: the lock says that
it lives, and ends with its connection. The lease covers the rest, and is all that a client has. A row whose lease has
ended is claimed by the next one that asks; whoever comes back to a claim that was taken over finds no row of it.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, func, inspect, or_, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.domain.batch_state import TRANSITIONS, BatchAction, BatchState
from service.tables import ClaimedRow

Row = TypeVar("Row", bound=ClaimedRow)


def claim_rows(
    session: Session,
    table: type[Row],
    which: ColumnElement[bool],
    order: InstrumentedAttribute[Any],
    limit: int,
    lease_seconds: float,
) -> Sequence[Row]:
    """Claim up to `limit` rows, the first ones in `order` that are pending or whose claimer is gone, under one token;
    return them in no order."""
    key = inspect(table).primary_key
    free = select(*key).where(which, is_claimable(table)).order_by(order).limit(limit).with_for_update(skip_locked=True)
    keys = session.execute(free).all()
    if not keys:
        return []
    return change_rows(
        session,
        table,
        tuple_(*key).in_([tuple(found) for found in keys]),
        BatchAction.CLAIM,
        claim_token=uuid.uuid4(),
        attempts=table.attempts + 1,
        lease_expires_at=seconds_from_now(lease_seconds),
    )


def is_claimable(table: type[Row]) -> ColumnElement[bool]:
    """Return the condition that a row may be claimed now."""
    rested = or_(table.retry_at.is_(None), table.retry_at < func.now())
    return or_(
        and_(table.state == BatchState.PENDING, rested),
        and_(table.state == BatchState.CLAIMED, table.lease_expires_at < func.now()),
    )


def change_rows(
    session: Session, table: type[Row], which: ColumnElement[bool], action: BatchAction, **values: Any
) -> Sequence[Row]:
    """Move those rows that the action may move, and return them: the only function that does.

    `values` are columns set with the state.
    """
    sources, target = TRANSITIONS[action]
    statement = update(table).where(which, table.state.in_(sources)).values(state=target, **values)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement.returning(table), execution_options=options).all()


def renew_lease(session: Session, table: type[Row], which: ColumnElement[bool], lease_seconds: float) -> None:
    """Begin the lease of claimed rows anew, for work that holds no row locked."""
    claimed = update(table).where(which, table.state == BatchState.CLAIMED)
    session.execute(claimed.values(lease_expires_at=seconds_from_now(lease_seconds)))


def pause_seconds(attempts: int, retry_base_seconds: float) -> float:
    """Return how long work rests after so many attempts: twice as long each time, up to a minute."""
    return min(60.0, retry_base_seconds * 2.0 ** (attempts - 1))


def seconds_from_now(seconds: float) -> ColumnElement[datetime]:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
