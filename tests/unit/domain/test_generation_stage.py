"""Every (state, action) pair of a generation, against one table written out here."""

from itertools import product

import pytest

from service.domain.generation_stage import TRANSITIONS, GenerationAction, GenerationStage

# The state after each action, and `-` where the action is refused.
TABLE = """
state    complete drop
building complete dropped
complete complete dropped
dropped  -        -
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {
    (GenerationStage(row[0]), GenerationAction(action)): after
    for row in ROWS
    for action, after in zip(HEADER[1:], row[1:], strict=True)
}


def test_the_table_here_has_every_pair() -> None:
    assert set(EXPECTED) == set(product(GenerationStage, GenerationAction))


@pytest.mark.parametrize(("state", "action"), list(product(GenerationStage, GenerationAction)), ids=str)
def test_each_action_does_in_each_state_what_the_table_says(state: GenerationStage, action: GenerationAction) -> None:
    sources, target = TRANSITIONS[action]

    assert EXPECTED[state, action] == (target if state in sources else "-")
