"""Votes of people who see two answers to a query and not which generation gave which.

Which answer stands left is drawn by the query, the same for everyone who looks at it. One vote counts of each query: a
later one takes the place of the one before.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from math import comb

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.domain.gallery.items import get_item
from service.tables import BlindVote, Gallery, Upgrade, VoteFor


class Side(StrEnum):
    """Which answer somebody finds better, as they stand on the page."""

    LEFT = "left"
    RIGHT = "right"
    NEITHER = "neither"


@dataclass(frozen=True)
class Tally:
    """How many votes there are for the answer before, for the one after, and for neither."""

    before: int
    after: int
    neither: int

    @property
    def votes(self) -> int:
        return self.before + self.after + self.neither

    @property
    def p_value(self) -> float | None:
        """The two-sided sign test: how likely at least so uneven a choice is if neither is better; None without one."""
        chosen = self.before + self.after
        if chosen == 0:
            return None
        tail = sum(comb(chosen, each) for each in range(min(self.before, self.after) + 1))
        return min(1.0, 2 * tail / (1 << chosen))


def next_is_left(upgrade_id: int, external_id: str) -> bool:
    """Return whether the next generation's answer stands left."""
    return bool(hashlib.sha256(f"{upgrade_id}:{external_id}".encode()).digest()[0] & 1)


def vote(session: Session, upgrade: Upgrade, external_id: str, side: Side) -> Tally:
    """Count a vote on the answers to an item, and return the tally. Raises `UnknownItem` (404)."""
    gallery = session.get_one(Gallery, upgrade.gallery_id)
    item = get_item(session, gallery.name, external_id)
    choice = _choice(side, next_is_left(upgrade.id, item.external_id))
    new = insert(BlindVote).values(upgrade_id=upgrade.id, item_id=item.id, choice=choice)
    same = [BlindVote.upgrade_id, BlindVote.item_id]
    session.execute(new.on_conflict_do_update(index_elements=same, set_={"choice": choice, "at": func.now()}))
    return tally(session, upgrade.id)


def tally(session: Session, upgrade_id: int) -> Tally:
    """Return how many votes there are."""
    query = select(BlindVote.choice, func.count().label("votes")).where(BlindVote.upgrade_id == upgrade_id)
    rows = session.execute(query.group_by(BlindVote.choice))
    counts: dict[VoteFor, int] = {row.choice: row.votes for row in rows.all()}
    return Tally(counts.get("before", 0), counts.get("after", 0), counts.get("neither", 0))


def _choice(side: Side, is_next_left: bool) -> VoteFor:
    if side is Side.NEITHER:
        return "neither"
    return "after" if (side is Side.LEFT) == is_next_left else "before"
