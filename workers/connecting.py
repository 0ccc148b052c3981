"""Advancing an upgrade of another store: its ranges are claimed, transformed, written and read again until its new side
has caught up, is verified and judged; then its writes are followed, and it is switched when that was asked for.

Any worker may do so, twice and cut off anywhere: ranges are claimed from rows, a range may be written again with the
same effect, the steps that are one worker's alone are under an advisory lock, and what a store did is asked of the
store.

Crash points: `external.committed` after a range, `external.verified` after the report is recorded; the others are in
`service.domain.external`.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from service import logs
from service.advisory_locks import AdvisoryLock
from service.connectors.named import UnknownStore
from service.connectors.store import ExternalStore, StoreAway, StoreRefused
from service.crash_points import crash_point
from service.db import is_outage
from service.domain.claims import Claim, release_claim, return_claim
from service.domain.external import passes
from service.domain.external.actions import clean_up, switch
from service.domain.external.planning import begin
from service.domain.external.ranges import (
    claim_range,
    set_aside,
    work_on_range,
)
from service.domain.external.reports import cut_over_if_passed, store_report
from service.domain.external.rows import RowsRefused, Target, new_side_of
from service.domain.external.upgrades import (
    UnknownExternalUpgrade,
    change_state,
    fail_external_upgrade,
    get_external_upgrade,
    lock_state,
    record_trouble,
)
from service.domain.external_findings import Findings, Late
from service.domain.external_state import ExternalAction, ExternalState
from service.domain.judging.reports import NewReport
from service.domain.state_table import IllegalTransition
from service.networks.transformations import TransformationFailed
from service.tables import ExternalBatch, ExternalUpgrade, ModelVersion, Transformation
from workers.app import WorkerParts
from workers.judging_external import judge_external

events = logs.Events(__name__)

_REST_SLICE_SECONDS = 0.2
_LATER = " Retry the upgrade when the cause is gone, or cancel it."


@dataclass(frozen=True)
class Connected:
    """An upgrade with its store open, and what its new side holds."""

    parts: WorkerParts
    upgrade: ExternalUpgrade
    store: ExternalStore
    target: Target


def advance_external(parts: WorkerParts, upgrade_id: int) -> bool:
    """Work on an upgrade for one time slice; return whether there is more that this worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    try:
        with parts.database.session_scope() as session:
            upgrade = get_external_upgrade(session, upgrade_id)
            new = new_side_of(session, upgrade)
    except UnknownExternalUpgrade:
        return False
    try:
        with parts.stores.opened(upgrade.store, new) as store:
            more = _advance_until(parts, upgrade_id, store, ends)
    except (StoreAway, UnknownStore) as error:
        with parts.database.session_scope() as session:
            record_trouble(session, upgrade_id, f"{error.message} It is tried again until the store answers.")
        return False
    except StoreRefused as error:
        _give_up(parts, upgrade_id, f"{error.message}{_LATER}")
        return False
    if upgrade.error is not None:
        with parts.database.session_scope() as session:
            record_trouble(session, upgrade_id, None)
    return more


def _advance_until(parts: WorkerParts, upgrade_id: int, store: ExternalStore, ends: float) -> bool:
    """Take one step after another, one at least, until there is none or the time slice ends."""
    while True:
        with parts.database.session_scope() as session:
            upgrade = get_external_upgrade(session, upgrade_id)
            transformation = session.get_one(Transformation, upgrade.transformation_id)
            to_version = session.get_one(ModelVersion, upgrade.to_version_id)
        step = _STEPS.get(upgrade.state)
        if step is None or upgrade.cleaned_at is not None:
            return False
        target = Target.of(parts.networks, transformation, to_version, upgrade.description)
        try:
            if not step(Connected(parts, upgrade, store, target)):
                return False
        except IllegalTransition as error:  # a user's action was first
            events.info("external.step_overtaken", external_id=upgrade_id, reason=error.message)
            return False
        except RowsRefused as error:
            _give_up(parts, upgrade_id, f"{error} Replace or delete them and retry, or cancel.")
            return False
        except TransformationFailed as error:
            _give_up(parts, upgrade_id, f"{error.message}{_LATER}")
            return False
        if time.monotonic() >= ends:
            return True


def _phase(connected: Connected) -> AbstractContextManager[bool]:
    """Hold the upgrade's phase lock, if it is free."""
    return connected.parts.database.advisory_lock(AdvisoryLock.EXTERNAL_PHASE, connected.upgrade.id)


def _plan(connected: Connected) -> bool:
    with _phase(connected) as mine:
        if not mine:
            time.sleep(_REST_SLICE_SECONDS)
            return True
        with connected.parts.database.session_scope() as session:
            if get_external_upgrade(session, connected.upgrade.id).state is not ExternalState.PLANNED:
                return True
        begin(connected.parts.database, connected.store, connected.upgrade)
    return True


def _transform(connected: Connected) -> bool:
    """Work on ranges; when all are done, go over them again until the new side has caught up, then verify."""
    return _in_passes(connected, _caught_up)


def _caught_up(connected: Connected) -> bool:
    parts, upgrade = connected.parts, connected.upgrade
    with parts.database.session_scope() as session:
        changed = passes.note_pass(session, upgrade)
    if connected.upgrade.description.notices_writes:
        with parts.database.session_scope() as session:
            if lock_state(session, upgrade.id, shared=True).state is not ExternalState.TRANSFORMING:
                return False
            few = passes.settle_few(connected.store, connected.target, parts.settings.cutover_max_changes)
        if not few:
            return True
    elif upgrade.pass_number == 1 or not passes.has_converged(upgrade, changed):
        with parts.database.session_scope() as session:
            passes.begin_pass(session, upgrade.id)
        return True
    with parts.database.session_scope() as session:
        passes.begin_pass(session, upgrade.id, ExternalAction.TRANSFORMED)
    return True


def _verify(connected: Connected) -> bool:
    """Compare both sides of every range; when nothing had to be repaired, judge the upgrade and have it ready."""
    return _in_passes(connected, _verified)


def _verified(connected: Connected) -> bool:
    parts, upgrade = connected.parts, connected.upgrade
    store_rows = connected.store.describe().rows
    with parts.database.session_scope() as session:
        passes.note_pass(session, upgrade)
        findings = passes.findings_of(session, upgrade, store_rows)
        if not passes.check_repairs(session, upgrade, findings):
            if get_external_upgrade(session, upgrade.id).state is not ExternalState.VERIFYING:
                return False
            passes.begin_pass(session, upgrade.id)
            return True
    connected.store.index()
    report = _judged(connected, findings, 0)
    if report is None:
        return False
    with parts.database.session_scope() as session:
        change_state(session, upgrade.id, ExternalAction.VERIFIED, findings=findings)
        store_report(session, upgrade.id, report)
    crash_point("external.verified")
    return True


def _judged(connected: Connected, findings: Findings, seed: int) -> NewReport | None:
    """Judge the upgrade; where that cannot be done, stop it with the reason and return None."""
    try:
        return judge_external(connected.parts, connected.store, connected.upgrade, findings, seed)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        _give_up(connected.parts, connected.upgrade.id, f"The upgrade could not be judged: {reason}.{_LATER}")
        return None


def _follow(connected: Connected) -> bool:
    """Keep the new side near while the upgrade is ready, judge it anew and switch when that was asked for."""
    if not _is_awake(connected.parts, connected.upgrade):
        return False
    with _phase(connected) as mine:
        if not mine:
            return False
        return _follow_alone(connected)


def _follow_alone(connected: Connected) -> bool:
    parts, upgrade = connected.parts, connected.upgrade
    if connected.store.is_switched():
        return _switch(connected)  # a worker died between the switch and its record
    if upgrade.evaluate_seed is not None:
        assert upgrade.findings is not None
        report = _judged(connected, upgrade.findings, upgrade.evaluate_seed)
        if report is None:
            return False
        with parts.database.session_scope() as session:
            store_report(session, upgrade.id, report)
        return True
    with parts.database.session_scope() as session:
        cut_over_if_passed(session, upgrade.id)
        session.flush()
        upgrade = get_external_upgrade(session, upgrade.id)
    if not _is_followed(Connected(parts, upgrade, connected.store, connected.target)):
        return True
    return upgrade.cutover_requested_at is not None and _switch(connected)


def _is_followed(connected: Connected) -> bool:
    """Bring along what was written; return whether that is done for now."""
    parts, upgrade = connected.parts, connected.upgrade
    if upgrade.description.notices_writes:
        with parts.database.session_scope() as session:
            if lock_state(session, upgrade.id, shared=True).state is not ExternalState.READY:
                return True
            return not passes.settle_all(connected.store, connected.target)
    if upgrade.passed_at is not None:
        if not _wants_pass(connected):
            return True
        with parts.database.session_scope() as session:
            passes.begin_pass(session, upgrade.id)
        return False
    if _run_range(connected):
        return False
    with parts.database.session_scope() as session:
        if passes.fail_for_refused(session, upgrade):
            return True
        if passes.is_pass_done(session, upgrade):
            passes.note_pass(session, upgrade)
            return False
    return True


def _wants_pass(connected: Connected) -> bool:
    with connected.parts.database.session_scope() as session:
        return passes.wants_pass(session, connected.upgrade, connected.parts.settings.external_pass_every_seconds)


def _switch(connected: Connected) -> bool:
    with connected.parts.database.session_scope() as session:
        switched = switch(session, connected.upgrade.id, connected.store, connected.target)
    crash_point("external.recorded_live")
    return switched is not None


def _look_after_switch(connected: Connected) -> bool:
    """Look once for what was written on the old side around the switch, in a store that does not say."""
    parts, upgrade = connected.parts, connected.upgrade
    if upgrade.followed_at is not None:
        return False
    if upgrade.description.notices_writes:
        with parts.database.session_scope() as session:
            passes.note_followed(session, upgrade.id, Late())
        return False
    with parts.database.session_scope() as session:
        if upgrade.passed_at is not None and upgrade.live_at is not None and upgrade.passed_at <= upgrade.live_at:
            passes.begin_pass(session, upgrade.id)
            return True
    return _in_passes(connected, _looked_after_switch)


def _looked_after_switch(connected: Connected) -> bool:
    with connected.parts.database.session_scope() as session:
        passes.note_pass(session, connected.upgrade)
        passes.note_followed(session, connected.upgrade.id, passes.late_of(session, connected.upgrade))
    return False


def _clean_up(connected: Connected) -> bool:
    with _phase(connected) as mine:
        if mine:
            with connected.parts.database.session_scope() as session:
                clean_up(session, connected.upgrade.id, connected.store)
    return False


_STEPS: dict[ExternalState, Callable[[Connected], bool]] = {
    ExternalState.PLANNED: _plan,
    ExternalState.TRANSFORMING: _transform,
    ExternalState.VERIFYING: _verify,
    ExternalState.READY: _follow,
    ExternalState.LIVE: _look_after_switch,
    ExternalState.FINALIZED: _clean_up,
    ExternalState.CANCELLED: _clean_up,
    ExternalState.ROLLED_BACK: _clean_up,
}


def _in_passes(connected: Connected, done: Callable[[Connected], bool]) -> bool:
    """Work on one range; where none is left of the pass, do what follows it, under the phase lock."""
    if not _is_awake(connected.parts, connected.upgrade):
        return False
    if _run_range(connected):
        return True
    with _phase(connected) as mine:
        if not mine:
            return False
        with connected.parts.database.session_scope() as session:
            upgrade = get_external_upgrade(session, connected.upgrade.id)
            if upgrade.state is not connected.upgrade.state or upgrade.pass_number != connected.upgrade.pass_number:
                return True
            if passes.fail_for_refused(session, upgrade) or not passes.is_pass_done(session, upgrade):
                return False
        return done(Connected(connected.parts, upgrade, connected.store, connected.target))


def _is_awake(parts: WorkerParts, upgrade: ExternalUpgrade) -> bool:
    """Rest for a moment where the speed says so; return whether there is anything to do at all."""
    if upgrade.speed == 0 and upgrade.cutover_requested_at is None:
        return False
    if upgrade.cutover_requested_at is None:
        rest = parts.external_throttle.rest_seconds(upgrade.id, upgrade.speed)
        if rest > 0:
            time.sleep(min(rest, _REST_SLICE_SECONDS))
    return True


def _run_range(connected: Connected) -> bool:
    """Claim and work on one range; return whether there is reason to look for another."""
    parts, settings, upgrade = connected.parts, connected.parts.settings, connected.upgrade
    claim = claim_range(parts.database, upgrade, settings.lease_seconds)
    if claim is None:
        return False
    if claim.attempts > settings.max_batch_attempts:
        tries, reason = settings.max_batch_attempts, claim.last_error or "none, its worker died"
        sentence = f"Range {claim.row.number} was tried {tries} times and never finished; its last error: {reason}."
        _give_up(parts, upgrade.id, f"{sentence}{_LATER}")
        return False

    began = time.monotonic()
    try:
        with parts.database.session_scope() as session:
            work_on_range(session, claim, connected.store, connected.target)
        crash_point("external.committed")
    except RowsRefused as error:
        with parts.database.session_scope() as session:
            set_aside(session, claim, error.reasons)
    except (StoreAway, StoreRefused, TransformationFailed):
        _return(parts, claim)
        raise
    except Exception as error:  # noqa: BLE001 - any range may fail; recorded, and tried again after a pause
        if is_outage(error):
            return False  # the lease ends, and the sweep asks again once the database is back
        events.exception("external.range_failed", error, external_id=upgrade.id, number=claim.row.number)
        with parts.database.session_scope() as session:
            release_claim(session, claim, f"{type(error).__name__}: {error}", settings.retry_base_seconds)
    parts.external_throttle.worked(upgrade.id, time.monotonic() - began)
    return True


def _return(parts: WorkerParts, claim: Claim[ExternalBatch]) -> None:
    with parts.database.session_scope() as session:
        return_claim(session, claim)


def _give_up(parts: WorkerParts, upgrade_id: int, sentence: str) -> None:
    """Stop an upgrade that is worked on; of one that is live, record that what was written around its switch is not
    known; of one that ended, why its store is not given free."""
    with parts.database.session_scope() as session:
        upgrade = get_external_upgrade(session, upgrade_id)
        if upgrade.state is ExternalState.LIVE:
            passes.note_followed(session, upgrade_id, Late(error=sentence))
        elif upgrade.finished_at is not None:
            record_trouble(session, upgrade_id, sentence)
        else:
            fail_external_upgrade(session, upgrade_id, sentence)
