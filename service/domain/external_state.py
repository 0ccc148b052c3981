"""The states of an upgrade of a gallery in another store, and the actions that move between them; pure, no database.

    planned ─a▶ transforming ─b▶ verifying ─c▶ ready ─d▶ live ─e▶ finalized
       │             │               │           │         │
       └──────── pause (f) ──────────┘           │         └─rollback (g)▶ rolled_back
                     │                           │
                  paused ─resume (h)▶ where it was
       any open state ───────── cancel (i) ──────┴▶ cancelled
       any working state, ready ── fail (j) ─▶ failed ── retry (k) ─▶ where it was

a start, b transformed, c verified, d cut over, j fail: whoever works on it does these; the rest are a user's, who also
asks for d. The store is switched before d is recorded, and switched back before g is: after a crash between the two,
the store says which it was. What a state that ended leaves in the store is removed after it was recorded.
"""

from enum import StrEnum

from service.domain.state_table import StateTable


class ExternalState(StrEnum):
    PLANNED = "planned"  # recorded; the store may have an empty new side, and may have begun to notice writes
    TRANSFORMING = "transforming"  # ranges of keys are rows; those that are done have their rows on the new side
    VERIFYING = "verifying"  # few writes are behind; both sides of every range are read and compared
    READY = "ready"  # verified and judged; what is written is followed; a cutover may be asked for
    LIVE = "live"  # searches of the store see the new side; the old one is kept
    FINALIZED = "finalized"  # the old side is removed, or will be as soon as the store answers
    PAUSED = "paused"  # nothing is in flight and no range will be taken; `resume_state` says where to go on
    CANCELLED = "cancelled"  # searches see the old side; the new one is removed, or will be
    FAILED = "failed"  # stopped with a sentence in `error`; ranges that are done are kept for a retry
    ROLLED_BACK = "rolled_back"  # searches see the old side again; the new one is removed, or will be


class ExternalAction(StrEnum):
    START = "start"
    TRANSFORMED = "transformed"
    VERIFIED = "verified"
    CUTOVER = "cutover"
    FINALIZE = "finalize"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    FAIL = "fail"
    RETRY = "retry"
    ROLLBACK = "rollback"


_State, _Action = ExternalState, ExternalAction
WORKING = frozenset({_State.PLANNED, _State.TRANSFORMING, _State.VERIFYING})
OPEN = WORKING | {_State.READY, _State.PAUSED, _State.FAILED}

# (state, action) -> next state; None means the state that was left by pause or failure.
TRANSITIONS: dict[tuple[ExternalState, ExternalAction], ExternalState | None] = {
    (_State.PLANNED, _Action.START): _State.TRANSFORMING,
    (_State.TRANSFORMING, _Action.TRANSFORMED): _State.VERIFYING,
    (_State.VERIFYING, _Action.VERIFIED): _State.READY,
    (_State.READY, _Action.CUTOVER): _State.LIVE,
    (_State.LIVE, _Action.FINALIZE): _State.FINALIZED,
    (_State.LIVE, _Action.ROLLBACK): _State.ROLLED_BACK,
    (_State.PAUSED, _Action.RESUME): None,
    (_State.FAILED, _Action.RETRY): None,
    **{(state, _Action.PAUSE): _State.PAUSED for state in sorted(WORKING)},
    **{(state, _Action.FAIL): _State.FAILED for state in sorted(WORKING | {_State.READY})},
    **{(state, _Action.CANCEL): _State.CANCELLED for state in sorted(OPEN)},
}

# Asking again for what is already true is answered with the upgrade, not refused.
ALREADY_TRUE: dict[ExternalAction, frozenset[ExternalState]] = {
    _Action.PAUSE: frozenset({_State.PAUSED}),
    _Action.RESUME: WORKING | {_State.READY},
    _Action.RETRY: WORKING | {_State.READY},
    _Action.CANCEL: frozenset({_State.CANCELLED}),
    _Action.CUTOVER: frozenset({_State.LIVE}),
    _Action.ROLLBACK: frozenset({_State.ROLLED_BACK}),
    _Action.FINALIZE: frozenset({_State.FINALIZED}),
}

_TABLE = StateTable("An external upgrade", TRANSITIONS, ALREADY_TRUE)


def advance(state: ExternalState, action: ExternalAction, resume_state: ExternalState | None = None) -> ExternalState:
    """Return the state after `action`. Raises as `StateTable.advance` does."""
    return _TABLE.advance(state, action, resume_state)
