"""The states of a generation and the actions that move between them; pure, no database.

    building ─complete (a)▶ complete ─drop (b)▶ dropped
        └──────────────── drop (b) ─────────────▲

A gallery's first generation is recorded as complete, an upgrade's next one as building. a is a cutover, and a rollback,
which finds the previous generation complete. b is cancel, rollback and finalize. Nothing leaves `dropped`.
"""

from enum import StrEnum


class GenerationStage(StrEnum):
    BUILDING = "building"  # an open upgrade derives it; what is written goes into it too
    COMPLETE = "complete"  # active, or kept for a rollback
    DROPPED = "dropped"  # nothing writes to it; its table and index are gone, or soon removed


class GenerationAction(StrEnum):
    COMPLETE = "complete"
    DROP = "drop"


STORED = frozenset({GenerationStage.BUILDING, GenerationStage.COMPLETE})

# action -> the states that it may leave, and the one that it leads to.
TRANSITIONS: dict[GenerationAction, tuple[frozenset[GenerationStage], GenerationStage]] = {
    GenerationAction.COMPLETE: (STORED, GenerationStage.COMPLETE),
    GenerationAction.DROP: (STORED, GenerationStage.DROPPED),
}
