"""Every (state, action) pair of an upgrade of another store, against one table written out here."""

from itertools import product

import pytest

from service.domain.external_state import ExternalAction, ExternalState, advance
from service.domain.state_table import IllegalTransition

# As in `test_upgrade_state`: `same` where the action asks for what is true already, `back` for the state that was left,
# and `-` where the action is refused.
TABLE = """
state        start        transformed verified cutover finalize  pause  resume cancel    fail   retry rollback
planned      transforming -           -        -       -         paused same   cancelled failed same  -
transforming -            verifying   -        -       -         paused same   cancelled failed same  -
verifying    -            -           ready    -       -         paused same   cancelled failed same  -
ready        -            -           -        live    -         -      same   cancelled failed same  -
live         -            -           -        same    finalized -      -      -         -      -     rolled_back
finalized    -            -           -        -       same      -      -      -         -      -     -
paused       -            -           -        -       -         same   back   cancelled -      -     -
cancelled    -            -           -        -       -         -      -      same      -      -     -
failed       -            -           -        -       -         -      -      cancelled -      back  -
rolled_back  -            -           -        -       -         -      -      -         -      -     same
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (ExternalState(row[0]), ExternalAction(action)): after
    for row in ROWS
    for action, after in zip(HEADER[1:], row[1:], strict=True)
}
LEFT = ExternalState.TRANSFORMING


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(ExternalState, ExternalAction))


@pytest.mark.parametrize(("state", "action"), list(product(ExternalState, ExternalAction)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: ExternalState, action: ExternalAction) -> None:
    expected = EXPECTED[state, action]

    if expected == "-":
        with pytest.raises(IllegalTransition, match=f"^An external upgrade that is {state} cannot {action}; "):
            advance(state, action, LEFT)
    else:
        after = {"same": state, "back": LEFT}.get(expected) or ExternalState(expected)
        assert advance(state, action, LEFT) is after
