"""Advancing an upgrade: what the next step is in each state, until there is none or the time slice ends.

Any worker may run a step, a step may run twice, and it may be cut off anywhere. For batches that is safe by their
claims; for the other steps, by an advisory lock and the guarded change of state. Judging an upgrade writes nothing
until it is measured (crash point `evaluation.measured`); the report is stored with the change of state
(`evaluation.recorded`).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial

from service import logs
from service.advisory_locks import AdvisoryLock
from service.crash_points import crash_point
from service.db import Session
from service.disk import shortage
from service.domain.gallery.generations import GenerationKey, gone_if_dropped
from service.domain.indexes.builds import build_generation_index
from service.domain.indexes.engine import SmoothingNotPossible
from service.domain.judging.reports import GatesHold, NewReport, clear_request, store_report, wants_report
from service.domain.upgrade.batches import Work, plan_batches, transform_items
from service.domain.upgrade.catch_up import plan_catch_up, unfinished_batches, verify
from service.domain.upgrade.cutover import (
    NotAskedFor,
    NotComplete,
    ReportStale,
    TooFarBehind,
    cut_over,
    wants_cutover,
    withdraw_cutover,
)
from service.domain.upgrade.smoothing import check_index, plan_smoothing, smooth_items, waits_for_smoothing
from service.domain.upgrade.trials import end_failed_canary
from service.domain.upgrade.upgrades import (
    UnknownUpgrade,
    change_state,
    fail_for_items,
    fail_for_refused,
    get_upgrade,
    record_shortage,
)
from service.domain.upgrade_state import WORKING, Action, IllegalTransition, State
from service.errors import GalleryError
from service.index.served import GenerationGone
from service.networks.transformations import PoisonedItems, TransformationFailed
from service.queue import ADVANCE_RESTING_UPGRADE, ADVANCE_UPGRADE
from service.tables import Upgrade
from workers.app import WorkerParts
from workers.evaluating import evaluate
from workers.upgrade_batches import run_batches, stop

events = logs.Events(__name__)

_REST_SLICE_SECONDS = 0.2


def advance_upgrade(parts: WorkerParts, upgrade_id: int) -> str | None:
    """Work on an upgrade for one time slice; return the task that goes on with it, None when there is no more that this
    worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    while time.monotonic() < ends:
        try:
            with parts.database.session_scope() as session:
                upgrade = get_upgrade(session, upgrade_id)
        except UnknownUpgrade:
            return None  # its gallery was deleted

        step = _STEPS.get(upgrade.state)
        if step is None:
            return None

        if not _has_room(parts, upgrade):
            return None

        if upgrade.cutover_requested_at is None:  # somebody waits for a cutover: it is not throttled
            if upgrade.speed == 0:
                return None
            rest = parts.throttle.rest_seconds(upgrade_id, upgrade.speed)
            if rest > 0:
                time.sleep(min(rest, _REST_SLICE_SECONDS))  # short: others get their turn, the speed may change
                return ADVANCE_RESTING_UPGRADE

        try:
            with gone_if_dropped():
                if not step(parts, upgrade):
                    return None
        except GenerationGone as error:
            # A user's cancel came in between; with a table missing otherwise, this is worth a look.
            events.warning(
                "upgrade.generation_gone", upgrade_id=upgrade_id, state=str(upgrade.state), reason=str(error)
            )
            return None
    return ADVANCE_UPGRADE


def _has_room(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Return whether the disk has room for what an upgrade at work stores; the sweep looks again while it has not."""
    if upgrade.state not in WORKING:
        return True
    lack = shortage(parts.settings)
    if lack is not None or upgrade.error is not None:
        with parts.database.session_scope() as session:
            record_shortage(session, upgrade.id, lack)
    return lack is None


def _phase(parts: WorkerParts, upgrade_id: int) -> AbstractContextManager[bool]:
    """Hold the upgrade's phase lock, if it is free: one worker plans, builds or evaluates."""
    return parts.database.advisory_lock(AdvisoryLock.UPGRADE_PHASE, upgrade_id)


def _plan(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Plan the batches, under the phase lock: else a second worker would wait for the first one's batches to end, hold
    up all new ones meanwhile, and then find that it is late."""
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            time.sleep(_REST_SLICE_SECONDS)
            return True
        with parts.database.session_scope() as session:
            if get_upgrade(session, upgrade.id).state is not State.PLANNED:
                return True

        with suppress(Exception):  # the batch that needs a network reports that it is missing or damaged
            _load_networks(parts, upgrade)  # so that the first batches do not wait for them
        batch_items = parts.settings.batch_items
        _step(parts, upgrade.id, Action.START, partial(plan_batches, upgrade_id=upgrade.id, batch_items=batch_items))
    return True


def _transform(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Run batches; when all are done, catch up until the remainder is small, then go on to indexing."""
    if run_batches(parts, upgrade, _transforming(parts)):
        return True
    if _failed_for_refused(parts, upgrade.id):
        return False
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        behind = _verify(parts, upgrade.id)
        if behind is None:
            return False
        if behind <= parts.settings.cutover_max_changes:
            return _change(parts, upgrade.id, Action.TRANSFORMED)
        return _catch_up(parts, upgrade)


def _verify(parts: WorkerParts, upgrade_id: int) -> int | None:
    """Return how many changes the next generation is behind, while the phase lock is held.

    None while a batch is in another worker's hands, or rests after a failure: that worker goes on by itself, or the
    sweep nudges one later.
    """
    with parts.database.session_scope() as session:
        return None if unfinished_batches(session, upgrade_id) else verify(session, upgrade_id)


def _catch_up(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Plan batches for what waits."""
    with parts.database.session_scope() as session:
        planned = plan_catch_up(session, upgrade.id, parts.settings.batch_items)
    events.info("upgrade.catching_up", upgrade_id=upgrade.id, items=planned)
    return planned > 0


def _build_index(parts: WorkerParts, upgrade: Upgrade) -> bool:
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        try:
            build_generation_index(
                parts.database,
                parts.engine,
                GenerationKey(upgrade.gallery_id, upgrade.to_generation_id),
                upgrade_id=upgrade.id,
            )
        except (OSError, RuntimeError, MemoryError) as error:
            # FAISS, Milvus or the blob store. A lost database raises none of these: the sweep tries again.
            reason = f"{type(error).__name__}: {error}"
            stop(parts, upgrade.id, f"The index could not be built: {reason}. Retry when the cause is gone.")
            return False
        if waits_for_smoothing(upgrade):
            batch_items = parts.settings.batch_items
            plan = partial(plan_smoothing, upgrade_id=upgrade.id, batch_items=batch_items)
            return _step(parts, upgrade.id, Action.SMOOTH, plan)
        return _change(parts, upgrade.id, Action.INDEXED)


def _smooth(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Run the batches that smooth; when all are done, have the index built again."""
    try:
        with parts.database.session_scope() as session:
            check_index(session, upgrade)
        near = parts.engine.neighbourhoods(GenerationKey(upgrade.gallery_id, upgrade.to_generation_id))
    except SmoothingNotPossible as error:
        stop(parts, upgrade.id, f"The rows cannot be smoothed: {error.message}")
        return False
    if run_batches(parts, upgrade, partial(smooth_items, neighbourhoods=near)):
        return True
    with _phase(parts, upgrade.id) as mine:
        if not mine or not _all_done(parts, upgrade.id):
            return False
        return _change(parts, upgrade.id, Action.SMOOTHED)


def _all_done(parts: WorkerParts, upgrade_id: int) -> bool:
    with parts.database.session_scope() as session:
        return unfinished_batches(session, upgrade_id) == 0


def _evaluate(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Judge the next generation, and record the report with the change of state."""
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        report = _report(parts, upgrade)
        if report is None:
            return False
        try:
            with parts.database.session_scope() as session:
                change_state(session, upgrade.id, Action.EVALUATED)
                store_report(session, upgrade.id, report)
                clear_request(session, upgrade)
        except IllegalTransition as error:  # a user's action was first
            events.info("upgrade.step_overtaken", upgrade_id=upgrade.id, action="evaluated", reason=error.message)
            return False
        crash_point("evaluation.recorded")
        return True


def _report(parts: WorkerParts, upgrade: Upgrade) -> NewReport | None:
    """Judge the next generation; where that cannot be done, fail the upgrade with the reason and return None."""
    try:
        report = evaluate(parts, upgrade, upgrade.evaluate_seed or 0)
    except PoisonedItems as error:
        _fail_for_items(parts, upgrade.id, error)
        return None
    # A lost database raises none of these; the service's own error is that of a network that cannot be loaded.
    except (ValueError, OSError, RuntimeError, MemoryError, GalleryError) as error:
        reason = f"{type(error).__name__}: {error}"
        stop(parts, upgrade.id, f"The upgrade could not be judged: {reason}. Retry when the cause is gone.")
        return None
    crash_point("evaluation.measured")
    return report


def _evaluate_again(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Record another report on an upgrade that is ready; return whether there is one."""
    report = _report(parts, upgrade)
    if report is None:
        return False
    with parts.database.session_scope() as session:
        store_report(session, upgrade.id, report)
        clear_request(session, upgrade)
        end_failed_canary(session, upgrade.id)
    crash_point("evaluation.recorded")
    return True


def _go_live(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Keep the remainder small while the upgrade is ready, and cut over when that was asked for."""
    if run_batches(parts, upgrade, _transforming(parts)):
        return True
    if _failed_for_refused(parts, upgrade.id):
        return False
    with _phase(parts, upgrade.id) as mine:
        behind = _verify(parts, upgrade.id) if mine else None
        if behind is None:
            return False
        if behind > parts.settings.cutover_max_changes:
            return _catch_up(parts, upgrade)
        with parts.database.session_scope() as session:
            is_due = wants_report(session, upgrade)
        if is_due and not _evaluate_again(parts, upgrade):
            return False
    with parts.database.session_scope() as session:
        is_wanted = wants_cutover(session, get_upgrade(session, upgrade.id))
    return is_wanted and _cut_over(parts, upgrade)


def _cut_over(parts: WorkerParts, upgrade: Upgrade) -> bool:
    try:
        _load_networks(parts, upgrade)
        with parts.database.session_scope() as session:
            cut_over(session, upgrade.id, parts.networks.transform, parts.settings.cutover_max_changes)
        # 4. The scope has committed.
        crash_point("switch.committed")
    except (TooFarBehind, ReportStale):
        return True  # writers were faster than the look before; look again
    except GatesHold as error:
        events.info("upgrade.held", upgrade_id=upgrade.id, reason=error.message)
        with parts.database.session_scope() as session:
            withdraw_cutover(session, upgrade.id)
    except NotComplete as error:
        stop(parts, upgrade.id, f"The cutover was refused: {error.message}")
    except PoisonedItems as error:
        _fail_for_items(parts, upgrade.id, error)
    except TransformationFailed as error:
        stop(parts, upgrade.id, f"{error.message} Cancel the upgrade, or retry it when the cause is gone.")
    except (IllegalTransition, NotAskedFor):
        events.info("upgrade.cutover_overtaken", upgrade_id=upgrade.id)
    return False


def _load_networks(parts: WorkerParts, upgrade: Upgrade) -> None:
    parts.networks.load(transformation_id for leg in upgrade.legs for transformation_id in leg.transformation_ids)


_STEPS: dict[State, Callable[[WorkerParts, Upgrade], bool]] = {
    State.PLANNED: _plan,
    State.TRANSFORMING: _transform,
    State.INDEXING: _build_index,
    State.SMOOTHING: _smooth,
    State.EVALUATING: _evaluate,
    State.READY: _go_live,
}


def _transforming(parts: WorkerParts) -> Work:
    return partial(transform_items, transform=parts.networks.transform)


def _change(parts: WorkerParts, upgrade_id: int, action: Action) -> bool:
    """Change the state, and nothing with it, as a worker does."""
    return _step(parts, upgrade_id, action, partial(change_state, upgrade_id=upgrade_id, action=action))


def _step(parts: WorkerParts, upgrade_id: int, action: Action, act: Callable[[Session], object]) -> bool:
    """Change the state as a worker does; return False when a user's action (pause, cancel) came first."""
    try:
        with parts.database.session_scope() as session:
            act(session)
    except IllegalTransition as error:
        events.info("upgrade.step_overtaken", upgrade_id=upgrade_id, action=str(action), reason=error.message)
        return False
    return True


def _fail_for_items(parts: WorkerParts, upgrade_id: int, error: PoisonedItems) -> None:
    with parts.database.session_scope() as session:
        fail_for_items(session, upgrade_id, error.reasons)


def _failed_for_refused(parts: WorkerParts, upgrade_id: int) -> bool:
    """Fail the upgrade when its other batches are done, and some have items that cannot be upgraded."""
    with parts.database.session_scope() as session:
        return fail_for_refused(session, upgrade_id)
