"""Work that is claimed from rows: batches of upgrades and ingests, items of backfills.

A claim is a token and a lease. Whoever works holds the claimed rows locked meanwhile, where it can: the lock says that
it lives, and ends with its connection. The lease covers the rest, and is all that a client has. A row whose lease has
ended is claimed by the next one that asks; whoever comes back to a claim that was taken over finds no row of it.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, and_, func, inspect, or_, select, text, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.domain.batch_state import TRANSITIONS, BatchAction, BatchState
from service.tables import ClaimedRow

Row = TypeVar("Row", bound=ClaimedRow)


@dataclass(frozen=True)
class Claim(Generic[Row]):
    """The right to work on rows of a table until their token is replaced; they are as they were when it was given."""

    table: type[Row]
    rows: Sequence[Row]  # at least one

    @property
    def row(self) -> Row:
        """The one row, or any of several: what the claim itself sets is the same in all."""
        return self.rows[0]

    @property
    def attempts(self) -> int:
        return self.row.attempts

    @property
    def last_error(self) -> str | None:
        return self.row.error

    def holds(self) -> ColumnElement[bool]:
        """Return the condition that a row is one of these, and that nobody has taken it over.

        Whoever gives back a claim that was taken over moves no row, and need not know: the rows are another's by then.
        """
        keys = tuple_(*inspect(self.table).primary_key).in_([inspect(row).identity for row in self.rows])
        return keys & (self.table.claim_token == self.row.claim_token)


def claim_rows(
    session: Session,
    table: type[Row],
    which: ColumnElement[bool],
    order: InstrumentedAttribute[Any],
    limit: int,
    lease_seconds: float,
) -> Claim[Row] | None:
    """Claim up to `limit` rows, the first ones in `order` that are pending or whose claimer is gone; None where there
    are none."""
    key = inspect(table).primary_key
    free = select(*key).where(which, is_claimable(table)).order_by(order).limit(limit).with_for_update(skip_locked=True)
    keys = session.execute(free).all()
    if not keys:
        return None
    rows = change_rows(
        session,
        table,
        tuple_(*key).in_([tuple(found) for found in keys]),
        BatchAction.CLAIM,
        claim_token=uuid.uuid4(),
        attempts=table.attempts + 1,
        lease_expires_at=seconds_from_now(lease_seconds),
    )
    return Claim(table, rows)


def lock_claimed(session: Session, claim: Claim[Row]) -> Sequence[Row]:
    """Hold those rows of a claim that are not done or another's until the transaction ends, and return them."""
    held = select(claim.table).where(claim.holds(), claim.table.state == BatchState.CLAIMED)
    return session.scalars(held.order_by(*inspect(claim.table).primary_key).with_for_update()).all()


def lose_when_frozen(session: Session) -> None:
    """Have whoever is frozen in the middle of the transaction lose its connection, and with it the rows that it holds,
    after some minutes; one that waits for its turn to compute does not come near that."""
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '300s'"))


def finish_claim(session: Session, claim: Claim[Row], **values: Any) -> bool:
    """Mark claimed rows as done, with `values`; return whether that were all of them."""
    done = {"error": None, "done_at": func.clock_timestamp(), **values}
    return len(change_rows(session, claim.table, claim.holds(), BatchAction.FINISH, **done)) == len(claim.rows)


def release_claim(session: Session, claim: Claim[Row], sentence: str, retry_base_seconds: float) -> None:
    """Give a claim back after a failure, with the reason; it can be claimed again after a pause that doubles with every
    attempt, from `retry_base_seconds` up to a minute."""
    retry_at = seconds_from_now(pause_seconds(claim.attempts, retry_base_seconds))
    change_rows(session, claim.table, claim.holds(), BatchAction.RELEASE, error=sentence, retry_at=retry_at)


def return_claim(session: Session, claim: Claim[Row]) -> None:
    """Give a claim back as if its rows had not been tried."""
    change_rows(session, claim.table, claim.holds(), BatchAction.RELEASE, attempts=claim.table.attempts - 1)


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


def renew_lease(session: Session, claim: Claim[Row], lease_seconds: float) -> None:
    """Begin the lease of claimed rows anew, for work that holds no row locked."""
    claimed = update(claim.table).where(claim.holds(), claim.table.state == BatchState.CLAIMED)
    session.execute(claimed.values(lease_expires_at=seconds_from_now(lease_seconds)))


def pause_seconds(attempts: int, retry_base_seconds: float) -> float:
    """Return how long work rests after so many attempts: twice as long each time, up to a minute."""
    return min(60.0, retry_base_seconds * 2.0 ** (attempts - 1))


def seconds_from_now(seconds: float) -> ColumnElement[datetime]:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
