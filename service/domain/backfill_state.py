"""The states of a backfill and the actions that move between them; pure, no database.

    planned ─a▶ running ─b▶ finished
       │           │
       ├─ pause (c) ─▶ paused ─ resume (d) ─▶ where it was
       ├─ fail (e) ──▶ failed ─ retry (f) ──▶ where it was
       any of these ── cancel (g) ─────────▶ cancelled

a start, b finish, e fail: whoever works on it does these; the rest are a user's. Whatever ends a backfill, the rows
that it wrote stay: each is the better one for its item.
"""

from enum import StrEnum

from service.domain.state_table import StateTable


class BackfillState(StrEnum):
    PLANNED = "planned"  # recorded; its items are not chosen yet
    RUNNING = "running"  # its items are rows, in their order; finished ones have committed their embeddings
    FINISHED = "finished"  # every item is done, or the seconds that it had are spent
    PAUSED = "paused"  # nothing is in flight and no item will be taken; `resume_state` says where to go on
    FAILED = "failed"  # stopped with a sentence in `error`; what is done is kept for a retry
    CANCELLED = "cancelled"  # given up, by a user or with its generation; what is done stays


class BackfillAction(StrEnum):
    START = "start"
    FINISH = "finish"
    PAUSE = "pause"
    RESUME = "resume"
    FAIL = "fail"
    RETRY = "retry"
    CANCEL = "cancel"


WORKING = frozenset({BackfillState.PLANNED, BackfillState.RUNNING})
OPEN = WORKING | {BackfillState.PAUSED, BackfillState.FAILED}

# (state, action) -> next state; None means the state that was left by pause or failure.
TRANSITIONS: dict[tuple[BackfillState, BackfillAction], BackfillState | None] = {
    (BackfillState.PLANNED, BackfillAction.START): BackfillState.RUNNING,
    (BackfillState.RUNNING, BackfillAction.FINISH): BackfillState.FINISHED,
    (BackfillState.PLANNED, BackfillAction.PAUSE): BackfillState.PAUSED,
    (BackfillState.RUNNING, BackfillAction.PAUSE): BackfillState.PAUSED,
    (BackfillState.PAUSED, BackfillAction.RESUME): None,
    (BackfillState.PLANNED, BackfillAction.FAIL): BackfillState.FAILED,
    (BackfillState.RUNNING, BackfillAction.FAIL): BackfillState.FAILED,
    (BackfillState.FAILED, BackfillAction.RETRY): None,
    (BackfillState.PLANNED, BackfillAction.CANCEL): BackfillState.CANCELLED,
    (BackfillState.RUNNING, BackfillAction.CANCEL): BackfillState.CANCELLED,
    (BackfillState.PAUSED, BackfillAction.CANCEL): BackfillState.CANCELLED,
    (BackfillState.FAILED, BackfillAction.CANCEL): BackfillState.CANCELLED,
}

# Asking again for what is already true is answered with the backfill, not refused.
ALREADY_TRUE: dict[BackfillAction, frozenset[BackfillState]] = {
    BackfillAction.PAUSE: frozenset({BackfillState.PAUSED}),
    BackfillAction.RESUME: WORKING,
    BackfillAction.RETRY: WORKING,
    BackfillAction.CANCEL: frozenset({BackfillState.CANCELLED}),
}

_TABLE = StateTable("A backfill", TRANSITIONS, ALREADY_TRUE)


def advance(state: BackfillState, action: BackfillAction, resume_state: BackfillState | None = None) -> BackfillState:
    """Return the state after `action`. Raises as `StateTable.advance` does."""
    return _TABLE.advance(state, action, resume_state)
