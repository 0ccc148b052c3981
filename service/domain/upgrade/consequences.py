"""What each of a user's actions on an upgrade would do now, in numbers, or why it is not possible. Nothing changes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.domain.batch_state import BatchState
from service.domain.consequences import Consequence, counted, look_at_actions
from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import GenerationKey
from service.domain.judging.reports import failed_report
from service.domain.upgrade.cutover import check_finalize, check_rollback
from service.domain.upgrade.progress import UpgradeDetails
from service.domain.upgrade.trials import check_not_baked
from service.domain.upgrade_state import Action, State, advance
from service.tables import Gallery, UpgradeBatch


@dataclass(frozen=True)
class _Numbers:
    """What an upgrade's actions touch."""

    details: UpgradeDetails
    gallery: Gallery
    batches: dict[BatchState, int]
    items_left: int
    session: Session

    @property
    def batches_left(self) -> int:
        return self.batches.get(BatchState.PENDING, 0) + self.batches.get(BatchState.CLAIMED, 0)


def consequences_of(session: Session, details: UpgradeDetails) -> list[Consequence[Action]]:
    """Return every action of a user's, those that are possible first."""
    upgrade = details.upgrade
    batch = (UpgradeBatch.state, func.count(), func.sum(UpgradeBatch.items))
    rows = session.execute(select(*batch).where(UpgradeBatch.upgrade_id == upgrade.id).group_by(UpgradeBatch.state))
    of_state = {state: (count, int(items)) for state, count, items in rows}
    numbers = _Numbers(
        details,
        session.get_one(Gallery, upgrade.gallery_id),
        {state: count for state, (count, _) in of_state.items()},
        sum(items for state, (_, items) in of_state.items() if state is not BatchState.DONE),
        session,
    )
    return look_at_actions(
        upgrade.state,
        lambda action: advance(upgrade.state, action, upgrade.resume_state),
        {action: partial(happens, numbers) for action, happens in _WHAT_HAPPENS.items()},
    )


def _cutover(numbers: _Numbers) -> Consequence[Action]:
    details, upgrade = numbers.details, numbers.details.upgrade
    changes = numbers.gallery.revision - upgrade.verified_revision
    rate = details.progress["transforming"].rate
    wait = f", about {1_000 * changes / rate:,.0f} ms at the last rate" if changes and rate else ""
    waiting = (
        f"{counted(changes, 'change')} since the last catch-up {'is' if changes == 1 else 'are'} looked at while"
        f" writers wait{wait}"
        if changes
        else "No change waits, so writers are held up for the switch alone"
    )
    sentence = (
        f"Queries of {counted(numbers.gallery.items, 'item')} are answered by {details.to_version}, generation"
        f" {upgrade.to_generation_id}. {waiting}. A rollback stays possible until finalize."
    )
    failed = failed_report(numbers.session, upgrade)
    if failed is not None:
        sentence += f" Report {failed.number} failed: going live past it takes a reason, which is recorded."
    return Consequence(Action.CUTOVER, sentence, is_possible=True, needs_override=failed is not None)


def _pause(numbers: _Numbers) -> Consequence[Action]:
    claimed = numbers.batches.get(BatchState.CLAIMED, 0)
    sentence = (
        f"{counted(claimed, 'batch', 'batches')} in flight {'ends' if claimed == 1 else 'end'}, or"
        f" {'is' if claimed == 1 else 'are'} given back; then {counted(numbers.items_left, 'item')} wait until it is"
        " resumed. Queries and writes go on."
    )
    return Consequence(Action.PAUSE, sentence, is_possible=True)


def _resume(numbers: _Numbers) -> Consequence[Action]:
    return Consequence(Action.RESUME, f"{_to_do(numbers)} where the pause was.", is_possible=True)


def _retry(numbers: _Numbers) -> Consequence[Action]:
    done = counted(numbers.batches.get(BatchState.DONE, 0), "finished batch", "finished batches")
    return Consequence(Action.RETRY, f"{_to_do(numbers)}; {done} are kept.", is_possible=True)


def _rollback(numbers: _Numbers) -> Consequence[Action]:
    details, upgrade = numbers.details, numbers.details.upgrade
    check_rollback(numbers.session, upgrade, numbers.gallery)
    previous = GenerationKey(upgrade.gallery_id, upgrade.from_generation_id)
    lost = len(missing_items(numbers.session, previous, upgrade.live_revision or 0))
    written = numbers.gallery.revision - (upgrade.live_revision or 0)
    loss = (
        f" {counted(lost, 'item')} that only generation {upgrade.to_generation_id} has would be deleted."
        if lost
        else " No item is lost."
    )
    sentence = (
        f"Queries of {counted(numbers.gallery.items, 'item')} are answered by {details.from_version}, generation"
        f" {upgrade.from_generation_id}, again; the {counted(written, 'change')} since the cutover are in it too."
        f"{loss} Generation {upgrade.to_generation_id} is dropped."
    )
    return Consequence(Action.ROLLBACK, sentence, is_possible=True, lost_items=lost)


def _finalize(numbers: _Numbers) -> Consequence[Action]:
    upgrade = numbers.details.upgrade
    check_not_baked(upgrade)
    check_finalize(numbers.session, upgrade)
    sentence = (
        f"Generation {upgrade.from_generation_id} with {counted(numbers.gallery.items, 'row')} is dropped. From then"
        " on there is no rollback."
    )
    return Consequence(Action.FINALIZE, sentence, is_possible=True)


def _cancel(numbers: _Numbers) -> Consequence[Action]:
    details, upgrade = numbers.details, numbers.details.upgrade
    done = details.progress["transforming"].done
    sentence = (
        f"Generation {upgrade.to_generation_id} with {counted(done, 'transformed row')} is dropped; generation"
        f" {upgrade.from_generation_id}, which answers, stays as it is."
    )
    return Consequence(Action.CANCEL, sentence, is_possible=True)


# In the order in which they are shown.
_WHAT_HAPPENS: dict[Action, Callable[[_Numbers], Consequence[Action]]] = {
    Action.CUTOVER: _cutover,
    Action.PAUSE: _pause,
    Action.RESUME: _resume,
    Action.RETRY: _retry,
    Action.ROLLBACK: _rollback,
    Action.FINALIZE: _finalize,
    Action.CANCEL: _cancel,
}


def _to_do(numbers: _Numbers) -> str:
    batches, items = counted(numbers.batches_left, "batch", "batches"), counted(numbers.items_left, "item")
    state = numbers.details.upgrade.resume_state or State.TRANSFORMING
    return f"It goes on {str(state).replace('_', ' ')}, with {batches} of {items} left"
