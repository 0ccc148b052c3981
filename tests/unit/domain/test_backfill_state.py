"""Every (state, action) pair of a backfill, against one table written out here."""

from itertools import product

import pytest

from service.domain.backfill_state import BackfillAction, BackfillState, advance
from service.domain.state_table import IllegalTransition

# As in `test_upgrade_state`: `same` where the action asks for what is true already, `back` for the state that was left,
# and `-` where the action is refused.
TABLE = """
state      start    finish    pause   resume  fail    retry  cancel
planned    running  -         paused  same    failed  same   cancelled
running    -        finished  paused  same    failed  same   cancelled
finished   -        -         -       -       -       -      -
paused     -        -         same    back    -       -      cancelled
failed     -        -         -       -       -       back   cancelled
cancelled  -        -         -       -       -       -      same
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (BackfillState(row[0]), BackfillAction(action)): after
    for row in ROWS
    for action, after in zip(HEADER[1:], row[1:], strict=True)
}
LEFT = BackfillState.PLANNED


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(BackfillState, BackfillAction))


@pytest.mark.parametrize(("state", "action"), list(product(BackfillState, BackfillAction)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: BackfillState, action: BackfillAction) -> None:
    expected = EXPECTED[state, action]

    if expected == "-":
        with pytest.raises(IllegalTransition, match=f"^A backfill that is {state} cannot {action}; "):
            advance(state, action, LEFT)
    else:
        after = {"same": state, "back": LEFT}.get(expected) or BackfillState(expected)
        assert advance(state, action, LEFT) is after
