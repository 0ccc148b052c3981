"""Every (state, action) pair of an upgrade, against one table written out here."""

from itertools import product

import pytest

from service.domain.upgrade_state import OPEN, TRANSITIONS, WORKING, Action, IllegalTransition, State, advance

# One row per state: the state after each action, `same` where the action asks for what is true already, `back` for the
# state that was left, and `-` where the action is refused.
TABLE = """
state        start        transformed indexed    smooth    smoothed evaluated cutover finalize  pause  resume cancel    fail   retry rollback
planned      transforming -           -          -         -        -         -       -         paused same   cancelled failed same  -
transforming -            indexing    -          -         -        -         -       -         paused same   cancelled failed same  -
indexing     -            -           evaluating smoothing -        -         -       -         paused same   cancelled failed same  -
smoothing    -            -           -          -         indexing -         -       -         paused same   cancelled failed same  -
evaluating   -            -           -          -         -        ready     -       -         paused same   cancelled failed same  -
ready        -            -           -          -         -        -         live    -         -      same   cancelled failed same  -
live         -            -           -          -         -        -         same    finalized -      -      -         -      -     rolled_back
finalized    -            -           -          -         -        -         -       same      -      -      -         -      -     -
paused       -            -           -          -         -        -         -       -         same   back   cancelled -      -     -
failed       -            -           -          -         -        -         -       -         -      -      cancelled -      back  -
rolled_back  -            -           -          -         -        -         -       -         -      -      -         -      -     same
cancelled    -            -           -          -         -        -         -       -         -      -      same      -      -     -
"""  # noqa: E501 - a table is read by its columns

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (State(row[0]), Action(action)): after for row in ROWS for action, after in zip(HEADER[1:], row[1:], strict=True)
}
LEFT = State.INDEXING  # what a paused or failed upgrade was doing


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(State, Action))


@pytest.mark.parametrize(("state", "action"), list(product(State, Action)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: State, action: Action) -> None:
    expected = EXPECTED[state, action]

    if expected == "-":
        with pytest.raises(IllegalTransition, match=f"^An upgrade that is {state} cannot {action}; ") as refusal:
            advance(state, action, LEFT)
        assert refusal.value.status_code == 409
    else:
        after = {"same": state, "back": LEFT}.get(expected) or State(expected)
        assert advance(state, action, LEFT) is after


@pytest.mark.parametrize("state", State)
def test_a_refusal_lists_exactly_what_a_user_can_do_now(state: State) -> None:
    users = {Action.CUTOVER, Action.FINALIZE, Action.PAUSE, Action.RESUME, Action.CANCEL, Action.RETRY, Action.ROLLBACK}
    possible = sorted(action for action in users if EXPECTED[state, action] not in ("-", "same"))
    refused = next(action for action in Action if EXPECTED[state, action] == "-")

    with pytest.raises(IllegalTransition) as refusal:
        advance(state, refused)

    hint = f"possible now: {', '.join(possible)}." if possible else "nothing more can be done with it."
    assert refusal.value.message.endswith(f"; {hint}")


@pytest.mark.parametrize(("state", "action"), [(State.PAUSED, Action.RESUME), (State.FAILED, Action.RETRY)])
def test_going_back_needs_the_state_that_was_left(state: State, action: Action) -> None:
    with pytest.raises(ValueError, match="needs the state that was left"):
        advance(state, action)


def test_open_states_are_those_that_can_still_be_cancelled_and_working_ones_those_that_can_be_paused() -> None:
    assert {state for state in State if EXPECTED[state, Action.CANCEL] == "cancelled"} == OPEN
    assert {state for state in State if EXPECTED[state, Action.PAUSE] == "paused"} == WORKING


def test_every_state_but_the_first_is_reached_by_some_action() -> None:
    reached = {target for target in TRANSITIONS.values() if target is not None}

    assert reached == set(State) - {State.PLANNED}
