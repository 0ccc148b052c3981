"""What the tables of states of long work that users steer have in common: how an action moves along one; pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from service.errors import Conflict

State = TypeVar("State", bound=StrEnum)
Action = TypeVar("Action", bound=StrEnum)


class IllegalTransition(Conflict):
    """The action is not possible in this state."""


@dataclass(frozen=True)
class StateTable(Generic[State, Action]):
    """transitions: (state, action) -> next state, None for the state that was left by pause or failure; already_true:
    users' actions, and in which states each asks for what is so already; subject: what has the states, in words."""

    subject: str
    transitions: Mapping[tuple[State, Action], State | None]
    already_true: Mapping[Action, frozenset[State]]

    def advance(self, state: State, action: Action, resume_state: State | None = None) -> State:
        """Return the state after `action`; the same state when the action asks for what is already true.

        Raises `IllegalTransition` (409) with a sentence that lists what is possible.
        """
        if state in self.already_true.get(action, frozenset()):
            return state
        if (state, action) not in self.transitions:
            possible = sorted({str(a) for s, a in self.transitions if s is state and a in self.already_true})
            hint = f"possible now: {', '.join(possible)}" if possible else "nothing more can be done with it"
            raise IllegalTransition(f"{self.subject} that is {state} cannot {action}; {hint}.")
        target = self.transitions[state, action]
        if target is None and resume_state is None:
            raise ValueError(f"{action} needs the state that was left")
        return target or resume_state or state
