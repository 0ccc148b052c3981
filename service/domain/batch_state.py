"""The states of claimed work, a batch of an upgrade or an item of a backfill, and the actions that move between them;
pure, no database.

    pending ─claim (a)▶ claimed ─finish (b)▶ done
       ▲                   │
       └─── release (c) ───┘

a is taken again by the next claimer of what has a lease that ended. c is for what failed, what an outage cut off, and
what was paused; a retry (reset) takes the same way. Nothing leaves `done`: its rows are written, or it is given up.
"""

from enum import StrEnum


class BatchState(StrEnum):
    PENDING = "pending"  # to be claimed, after `retry_at` if that is set
    CLAIMED = "claimed"  # whoever has its token may work on it, until its lease has ended and another claims it
    DONE = "done"  # its rows were committed with this mark


class BatchAction(StrEnum):
    CLAIM = "claim"
    FINISH = "finish"
    RELEASE = "release"
    RESET = "reset"


UNFINISHED = frozenset({BatchState.PENDING, BatchState.CLAIMED})

# action -> the states that it may leave, and the one that it leads to.
TRANSITIONS: dict[BatchAction, tuple[frozenset[BatchState], BatchState]] = {
    BatchAction.CLAIM: (frozenset({BatchState.PENDING, BatchState.CLAIMED}), BatchState.CLAIMED),
    BatchAction.FINISH: (frozenset({BatchState.CLAIMED}), BatchState.DONE),
    BatchAction.RELEASE: (frozenset({BatchState.CLAIMED}), BatchState.PENDING),
    BatchAction.RESET: (frozenset({BatchState.PENDING, BatchState.CLAIMED}), BatchState.PENDING),
}
