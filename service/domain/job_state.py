"""The states of a job and the actions that move between them; pure, no database.

    queued ─begin (a)▶ running ─succeed (b)▶ succeeded
     ▲ ├───────────────── fail (c) ────────▶ failed
     │ ├──────────────── cancel (d) ───────▶ cancelled
     │ └─pause (e)▶ paused ─ cancel (d) ───▶ cancelled
     └─── resume (f) ─┘

An index build is recorded as running; a training and an ingest are queued, and take a again for every time slice. c, d
and e leave `queued` and `running` alike. Nothing leaves a state on the right: a job that was ended stays as it was
ended, whoever still works on it.
"""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  # recorded; no worker has begun it
    RUNNING = "running"  # a worker works on it, will go on with it, or died while it did
    PAUSED = "paused"  # nothing of it is written until it is resumed
    SUCCEEDED = "succeeded"  # `result` names what it made
    FAILED = "failed"  # stopped with a sentence in `error`
    CANCELLED = "cancelled"  # given up: by a user, or for something more urgent; what an ingest wrote stays


class JobAction(StrEnum):
    BEGIN = "begin"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"


WORKING = frozenset({JobState.QUEUED, JobState.RUNNING})
UNFINISHED = WORKING | {JobState.PAUSED}

# action -> the states that it may leave, and the one that it leads to.
TRANSITIONS: dict[JobAction, tuple[frozenset[JobState], JobState]] = {
    JobAction.BEGIN: (WORKING, JobState.RUNNING),
    JobAction.SUCCEED: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    JobAction.FAIL: (WORKING, JobState.FAILED),
    JobAction.CANCEL: (UNFINISHED, JobState.CANCELLED),
    JobAction.PAUSE: (WORKING, JobState.PAUSED),
    JobAction.RESUME: (frozenset({JobState.PAUSED}), JobState.QUEUED),
}
