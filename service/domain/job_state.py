"""The states of a job and the actions that move between them; pure, no database.

    queued ─begin (a)▶ running ─succeed (b)▶ succeeded
       ├───────────────── fail (c) ────────▶ failed
       └──────────────── cancel (d) ───────▶ cancelled

An index build is recorded as running; a training is queued, and takes a again for every time slice. c and d leave
`queued` and `running` alike. Nothing leaves a state on the right: a job that was ended stays as it was ended, whoever
still works on it.
"""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  # recorded; no worker has begun it
    RUNNING = "running"  # a worker works on it, will go on with it, or died while it did
    SUCCEEDED = "succeeded"  # `result` names what it made
    FAILED = "failed"  # stopped with a sentence in `error`
    CANCELLED = "cancelled"  # given up: by a user, or for something more urgent; nothing of it is kept


class JobAction(StrEnum):
    BEGIN = "begin"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


UNFINISHED = frozenset({JobState.QUEUED, JobState.RUNNING})

# action -> the states that it may leave, and the one that it leads to.
TRANSITIONS: dict[JobAction, tuple[frozenset[JobState], JobState]] = {
    JobAction.BEGIN: (UNFINISHED, JobState.RUNNING),
    JobAction.SUCCEED: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    JobAction.FAIL: (UNFINISHED, JobState.FAILED),
    JobAction.CANCEL: (UNFINISHED, JobState.CANCELLED),
}
