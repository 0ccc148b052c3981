"""The states of an upgrade and the actions that move between them; pure, no database.

    planned ─a▶ transforming ─b▶ indexing ─c▶ evaluating ─d▶ ready ─e▶ live ─f▶ finalized
       │             │             │ ▲            │            │         │
       │             │            m▼ │n           │            │         │
       │             │          smoothing         │            │         │
       └──────── pause (g) ─────────┴─────────────┘            │         └─rollback (h)▶ rolled_back
                     │                                         │
                  paused ─resume (i)▶ where it was             │
       any open state ──────────── cancel (j) ─────────────────┴▶ cancelled
       any working state, ready ── fail (k) ─▶ failed ── retry (l) ─▶ where it was

a start, b transformed, c indexed, d evaluated, e cut over, f finalize, m smooth, n smoothed: a to d, k, m and n are the
worker's, the rest a user's (cutover also the worker's own when the upgrade was created with `auto`). Only an upgrade
that asks for smoothing is ever there, and then once.
"""

from enum import StrEnum

from service.domain.state_table import IllegalTransition as IllegalTransition
from service.domain.state_table import StateTable


class State(StrEnum):
    PLANNED = "planned"  # the next generation's table exists, for what is written from now on; no batch does
    TRANSFORMING = "transforming"  # batches exist; finished ones have committed their rows
    INDEXING = "indexing"  # complete up to `verified_revision`, with few changes since when the batches ended
    SMOOTHING = "smoothing"  # the index has all rows as h made them; finished batches have committed smoothed ones
    EVALUATING = "evaluating"  # the next generation's index is named in its row
    READY = "ready"  # evaluated; the catch-up keeps the remainder small; cutover may be asked for
    LIVE = "live"  # the next generation is active; the previous one is kept and written to
    FINALIZED = "finalized"  # the previous generation is dropped
    PAUSED = "paused"  # no batch is in flight and none will start; `resume_state` says where to go on
    CANCELLED = "cancelled"  # the next generation is dropped; the active one was never touched
    FAILED = "failed"  # stopped with a sentence in `error`; finished batches are kept for a retry
    ROLLED_BACK = "rolled_back"  # the previous generation is active again; the next one is dropped


class Action(StrEnum):
    START = "start"
    TRANSFORMED = "transformed"
    INDEXED = "indexed"
    SMOOTH = "smooth"
    SMOOTHED = "smoothed"
    EVALUATED = "evaluated"
    CUTOVER = "cutover"
    FINALIZE = "finalize"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    FAIL = "fail"
    RETRY = "retry"
    ROLLBACK = "rollback"


WORKING = frozenset({State.PLANNED, State.TRANSFORMING, State.INDEXING, State.SMOOTHING, State.EVALUATING})
OPEN = WORKING | {State.READY, State.PAUSED, State.FAILED}

# (state, action) -> next state; None means the state that was left by pause or failure.
TRANSITIONS: dict[tuple[State, Action], State | None] = {
    (State.PLANNED, Action.START): State.TRANSFORMING,
    (State.TRANSFORMING, Action.TRANSFORMED): State.INDEXING,
    (State.INDEXING, Action.INDEXED): State.EVALUATING,
    (State.INDEXING, Action.SMOOTH): State.SMOOTHING,
    (State.SMOOTHING, Action.SMOOTHED): State.INDEXING,
    (State.EVALUATING, Action.EVALUATED): State.READY,
    (State.READY, Action.CUTOVER): State.LIVE,
    (State.LIVE, Action.FINALIZE): State.FINALIZED,
    (State.LIVE, Action.ROLLBACK): State.ROLLED_BACK,
    (State.PLANNED, Action.PAUSE): State.PAUSED,
    (State.TRANSFORMING, Action.PAUSE): State.PAUSED,
    (State.INDEXING, Action.PAUSE): State.PAUSED,
    (State.SMOOTHING, Action.PAUSE): State.PAUSED,
    (State.EVALUATING, Action.PAUSE): State.PAUSED,
    (State.PAUSED, Action.RESUME): None,
    (State.PLANNED, Action.FAIL): State.FAILED,
    (State.TRANSFORMING, Action.FAIL): State.FAILED,
    (State.INDEXING, Action.FAIL): State.FAILED,
    (State.SMOOTHING, Action.FAIL): State.FAILED,
    (State.EVALUATING, Action.FAIL): State.FAILED,
    (State.READY, Action.FAIL): State.FAILED,
    (State.FAILED, Action.RETRY): None,
    (State.PLANNED, Action.CANCEL): State.CANCELLED,
    (State.TRANSFORMING, Action.CANCEL): State.CANCELLED,
    (State.INDEXING, Action.CANCEL): State.CANCELLED,
    (State.SMOOTHING, Action.CANCEL): State.CANCELLED,
    (State.EVALUATING, Action.CANCEL): State.CANCELLED,
    (State.READY, Action.CANCEL): State.CANCELLED,
    (State.PAUSED, Action.CANCEL): State.CANCELLED,
    (State.FAILED, Action.CANCEL): State.CANCELLED,
}

# Asking again for what is already true is answered with the upgrade, not refused.
ALREADY_TRUE: dict[Action, frozenset[State]] = {
    Action.PAUSE: frozenset({State.PAUSED}),
    Action.RESUME: WORKING | {State.READY},
    Action.RETRY: WORKING | {State.READY},
    Action.CANCEL: frozenset({State.CANCELLED}),
    Action.CUTOVER: frozenset({State.LIVE}),
    Action.ROLLBACK: frozenset({State.ROLLED_BACK}),
    Action.FINALIZE: frozenset({State.FINALIZED}),
}


_TABLE = StateTable("An upgrade", TRANSITIONS, ALREADY_TRUE)


def advance(state: State, action: Action, resume_state: State | None = None) -> State:
    """Return the state after `action`. Raises as `StateTable.advance` does."""
    return _TABLE.advance(state, action, resume_state)
