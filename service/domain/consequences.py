"""What is said of users' actions on upgrades, here and of other stores: what each would do now, in numbers, or why it
is not possible."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from service.domain.state_table import IllegalTransition
from service.errors import Conflict

Action = TypeVar("Action", bound=StrEnum)

# Which state an action needs, by its name: the same in both tables of states.
_NEEDED = {
    "cutover": "an upgrade is cut over when it is ready",
    "pause": "it can be paused until it is ready",
    "resume": "only what is paused can be resumed",
    "retry": "only what failed can be retried",
    "rollback": "an upgrade is rolled back while it is live",
    "finalize": "an upgrade is finalized while it is live",
    "cancel": "only an upgrade that is not live yet can be cancelled",
}


@dataclass(frozen=True)
class Consequence(Generic[Action]):
    """What an action would do, or in the same place why it is not possible. `needs_override`: a gate failed, and it
    takes a reason to go past it. `lost_items`: that only the new generation has, and that a rollback would delete.
    `may_lose`: only the store that is asked for it knows whether anything is lost, and refuses it then unless that is
    accepted."""

    action: Action
    sentence: str
    is_possible: bool
    needs_override: bool = False
    lost_items: int = 0
    may_lose: bool = False


def look_at_actions(
    state: StrEnum,
    advanced: Callable[[Action], StrEnum],
    happens: Mapping[Action, Callable[[], Consequence[Action]]],
) -> list[Consequence[Action]]:
    """Return what is to be said of every action of `happens`, of those that are possible first. `advanced` gives the
    state after an action, the same one where it asks for what is so already; it raises `IllegalTransition`."""

    def look(action: Action) -> Consequence[Action]:
        try:
            if advanced(action) == state:
                return Consequence(action, f"It is so already: the upgrade is {state}.", is_possible=False)
            return happens[action]()
        except IllegalTransition:
            now = str(state).replace("_", " ")
            return Consequence(action, f"Not possible while it is {now}: {_NEEDED[action]}.", is_possible=False)
        except Conflict as error:
            return Consequence(action, error.message, is_possible=False)

    return sorted((look(action) for action in happens), key=lambda each: not each.is_possible)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its word."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
