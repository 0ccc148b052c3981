"""What each of a user's actions on an upgrade of another store would do now, in numbers, or why it is not possible.
Nothing changes, and the store is not asked: numbers are those of our rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from service.domain.batch_state import BatchState
from service.domain.consequences import Consequence, counted, look_at_actions
from service.domain.external.passes import RangeCounts, count_ranges
from service.domain.external.planning import switch_sentence
from service.domain.external.progress import ExternalDetails
from service.domain.external_state import ExternalAction, ExternalState, advance
from service.domain.verdict import Verdict


@dataclass(frozen=True)
class _Numbers:
    """What an upgrade's actions touch."""

    details: ExternalDetails
    ranges: RangeCounts

    @property
    def rows(self) -> str:
        """The rows that the store had when the upgrade was planned, in words."""
        return counted(self.details.upgrade.description.rows, "row")

    @property
    def notices_writes(self) -> bool:
        return self.details.upgrade.description.notices_writes


_Found = Consequence[ExternalAction]


def consequences_of(session: Session, details: ExternalDetails) -> list[_Found]:
    """Return every action of a user's, those that are possible first."""
    upgrade = details.upgrade
    numbers = _Numbers(details, count_ranges(session, upgrade))
    return look_at_actions(
        upgrade.state,
        lambda action: advance(upgrade.state, action, upgrade.resume_state),
        {action: partial(happens, numbers) for action, happens in _WHAT_HAPPENS.items()},
    )


def _cutover(numbers: _Numbers) -> _Found:
    details, upgrade = numbers.details, numbers.details.upgrade
    if upgrade.cutover_requested_at is not None:
        sentence = "It is asked for already: a worker switches the store as soon as what was written is brought along."
        return Consequence(ExternalAction.CUTOVER, sentence, is_possible=False)
    report = details.report
    verdict = Verdict.NOT_JUDGED if report is None else report.verdict
    sentence = (
        f"Searches of {numbers.rows} of {upgrade.store} see {details.to_version}, by which queries are to be encoded"
        f" from then on. {switch_sentence(notices_writes=numbers.notices_writes)}"
    )
    if verdict is Verdict.NOT_JUDGED:
        sentence += " It is not judged: how well h does here is not known, and that is recorded with the switch."
    if report is not None and verdict is Verdict.FAIL:
        sentence += f" Report {report.number} failed: going live past it takes a reason, which is recorded."
    return Consequence(ExternalAction.CUTOVER, sentence, is_possible=True, needs_override=verdict is Verdict.FAIL)


def _pause(numbers: _Numbers) -> _Found:
    claimed = numbers.ranges.states[BatchState.CLAIMED]
    sentence = (
        f"{counted(claimed, 'range')} in flight {'ends' if claimed == 1 else 'end'} first; then"
        f" {counted(numbers.ranges.left - claimed, 'range')} wait until it is resumed. Searches and writes of the store"
        " go on."
    )
    return Consequence(ExternalAction.PAUSE, sentence, is_possible=True)


def _resume(numbers: _Numbers) -> _Found:
    return Consequence(ExternalAction.RESUME, f"{_to_do(numbers)} where the pause was.", is_possible=True)


def _retry(numbers: _Numbers) -> _Found:
    done, refused = numbers.ranges.states[BatchState.DONE], numbers.ranges.refused
    sentence = f"{_to_do(numbers)}; {counted(done, 'finished range')} {'is' if done == 1 else 'are'} kept."
    if refused:
        sentence += (
            f" {counted(refused, 'range')} with rows that could not be transformed: what was wrong is tried again."
        )
    return Consequence(ExternalAction.RETRY, sentence, is_possible=True)


def _rollback(numbers: _Numbers) -> _Found:
    details, upgrade = numbers.details, numbers.details.upgrade
    written = (
        "The store knows what was written since the switch: with any such row it is refused with their number, unless"
        " they may be left without an embedding."
        if numbers.notices_writes
        else "What was written since the switch is on the new side alone, and goes with it."
    )
    sentence = (
        f"Searches of {upgrade.store} see its {numbers.rows} of {details.from_version} again. {written} Then a worker"
        " removes the new side."
    )
    return Consequence(ExternalAction.ROLLBACK, sentence, is_possible=True, may_lose=numbers.notices_writes)


def _finalize(numbers: _Numbers) -> _Found:
    upgrade = numbers.details.upgrade
    sentence = (
        f"A worker removes the old side of {upgrade.store}: {numbers.rows} of"
        f" {counted(upgrade.description.embedding_dim, 'number')} each. From then on there is no rollback."
    )
    return Consequence(ExternalAction.FINALIZE, sentence, is_possible=True)


def _cancel(numbers: _Numbers) -> _Found:
    details = numbers.details
    # What a later pass has not gone over yet was written by the first.
    is_first = details.upgrade.pass_number <= 1
    written = counted(numbers.ranges.rows_done, "row") if is_first else numbers.rows
    sentence = (
        f"A worker removes the new side with {written} written to it. Searches go on seeing the old one,"
        f" {details.from_version}'s, which stays as it is."
    )
    return Consequence(ExternalAction.CANCEL, sentence, is_possible=True)


# In the order in which they are shown.
_WHAT_HAPPENS: dict[ExternalAction, Callable[[_Numbers], _Found]] = {
    ExternalAction.CUTOVER: _cutover,
    ExternalAction.PAUSE: _pause,
    ExternalAction.RESUME: _resume,
    ExternalAction.RETRY: _retry,
    ExternalAction.ROLLBACK: _rollback,
    ExternalAction.FINALIZE: _finalize,
    ExternalAction.CANCEL: _cancel,
}


def _to_do(numbers: _Numbers) -> str:
    state = numbers.details.upgrade.resume_state or ExternalState.TRANSFORMING
    return f"It goes on {state}, with {counted(numbers.ranges.left, 'range')} left"
