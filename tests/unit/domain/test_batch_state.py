"""Every (state, action) pair of a batch, against one table written out here."""

from itertools import product

import pytest

from service.domain.batch_state import TRANSITIONS, BatchAction, BatchState

# The state after each action, and `-` where the action leaves the batch as it is.
TABLE = """
state   claim   finish release reset
pending claimed -      -       pending
claimed claimed done   pending pending
done    -       -      -       -
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (BatchState(row[0]), BatchAction(action)): after
    for row in ROWS
    for action, after in zip(HEADER[1:], row[1:], strict=True)
}


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(BatchState, BatchAction))


@pytest.mark.parametrize(("state", "action"), list(product(BatchState, BatchAction)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: BatchState, action: BatchAction) -> None:
    sources, target = TRANSITIONS[action]

    assert EXPECTED[state, action] == (target if state in sources else "-")
