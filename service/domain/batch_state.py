"""The states of an upgrade's batch and the actions that move between them; pure, no database.

    pending ─claim (a)▶ claimed ─finish (b)▶ done
       ▲                   │
       └─── release (c) ───┘

a is taken again by the next claimer of a batch whose lease has ended. c is for a batch that failed, that an outage cut
off, or whose upgrade was paused; a retry of the upgrade (reset) takes the same way. Nothing leaves `done`: its rows are
written.
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


# action -> the states that it may leave, and the one that it leads to.
TRANSITIONS: dict[BatchAction, tuple[frozenset[BatchState], BatchState]] = {
    BatchAction.CLAIM: (frozenset({BatchState.PENDING, BatchState.CLAIMED}), BatchState.CLAIMED),
    BatchAction.FINISH: (frozenset({BatchState.CLAIMED}), BatchState.DONE),
    BatchAction.RELEASE: (frozenset({BatchState.CLAIMED}), BatchState.PENDING),
    BatchAction.RESET: (frozenset({BatchState.PENDING, BatchState.CLAIMED}), BatchState.PENDING),
}
