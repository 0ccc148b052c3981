"""Every (state, action) pair of a job, against one table written out here."""

from itertools import product

import pytest

from service.domain.job_state import TRANSITIONS, UNFINISHED, JobAction, JobState

# The state after each action, and `-` where the action leaves the job as it is.
TABLE = """
state     begin   succeed   fail   cancel    pause  resume
queued    running -         failed cancelled paused -
running   running succeeded failed cancelled paused -
paused    -       -         -      cancelled -      queued
succeeded -       -         -      -         -      -
failed    -       -         -      -         -      -
cancelled -       -         -      -         -      -
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (JobState(row[0]), JobAction(action)): after
    for row in ROWS
    for action, after in zip(HEADER[1:], row[1:], strict=True)
}


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(JobState, JobAction))


@pytest.mark.parametrize(("state", "action"), list(product(JobState, JobAction)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: JobState, action: JobAction) -> None:
    sources, target = TRANSITIONS[action]

    assert EXPECTED[state, action] == (target if state in sources else "-")


def test_a_job_is_unfinished_while_an_action_can_move_it() -> None:
    assert {state for sources, _ in TRANSITIONS.values() for state in sources} == UNFINISHED
