"""Advancing an upgrade: what the next step is in each state, until there is none or the time slice ends.

Each step may be run by any worker, twice, or be cut off anywhere: batches by their claims, the phases by an advisory
lock and the guarded change of state.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import text

from models.metrics import cmc
from service import logs
from service.domain.batches import (
    claim_batch,
    plan_batches,
    plan_catch_up,
    release_batch,
    unfinished_batches,
    work_on_batch,
)
from service.domain.cutover import NotComplete, cut_over
from service.domain.evaluation import labelled_sample, record_evaluation
from service.domain.generations import count_missing
from service.domain.index_builds import build_generation_index
from service.domain.upgrade_state import Action, IllegalTransition, State
from service.domain.upgrades import PHASE_LOCK, change_state, fail_upgrade, get_upgrade
from service.tables import Upgrade
from service.vectors.rows import NotStorable
from workers.app import WorkerParts

events = logs.Events(__name__)


def advance_upgrade(parts: WorkerParts, upgrade_id: int) -> bool:
    """Work on an upgrade for one time slice; return whether there is more that this worker could do now."""
    ends = time.monotonic() + parts.settings.task_slice_seconds
    while time.monotonic() < ends:
        with parts.database.session_scope() as session:
            upgrade = get_upgrade(session, upgrade_id)
        step = _STEPS.get(State(upgrade.state))
        if step is None or not step(parts, upgrade):
            return False
    return True


def _plan(parts: WorkerParts, upgrade: Upgrade) -> bool:
    with parts.database.session_scope() as session:
        plan_batches(session, upgrade.id, parts.settings.batch_items)
    return True


def _transform(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Run one batch; when all are done, catch up until the remainder is small, then go on to indexing."""
    if _run_batch(parts, upgrade.id):
        return True
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        with parts.database.session_scope() as session:
            if unfinished_batches(session, upgrade.id):
                return False  # in another worker's hands; its own task goes on, or the sweep finds the lease ended
            waiting = count_missing(session, upgrade.gallery_id, upgrade.to_generation_id)
        if waiting <= parts.settings.cutover_remainder_items:
            return _change(parts, upgrade.id, Action.TRANSFORMED)
        return _catch_up(parts, upgrade)


def _catch_up(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Plan batches for what waits; fail if the round before could not derive a single row."""
    with parts.database.session_scope() as session:
        current = get_upgrade(session, upgrade.id)
        planned = plan_catch_up(session, current, parts.settings.batch_items)
    events.info("upgrade.catching_up", upgrade_id=upgrade.id, items=planned)
    return planned > 0


def _build_index(parts: WorkerParts, upgrade: Upgrade) -> bool:
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        build_generation_index(
            parts.database,
            parts.blobs,
            parts.settings,
            upgrade.gallery_id,
            upgrade.to_generation_id,
            upgrade.id,
        )
        return _change(parts, upgrade.id, Action.INDEXED)


def _evaluate(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Compare retrieval on labelled items, old/old against h/h, and record it."""
    with _phase(parts, upgrade.id) as mine:
        if not mine:
            return False
        with parts.database.session_scope(snapshot=True) as session:
            sample = labelled_sample(session, upgrade.id, parts.settings.evaluation_sample_items)
        before = after = None
        if sample is not None:
            metric = sample.metric
            before, after = (
                cmc(vectors, sample.labels, vectors, sample.labels, ks=(1,), self_match=True, metric=metric)[1]
                for vectors in (sample.before, sample.after)
            )
        with parts.database.session_scope() as session:
            record_evaluation(session, upgrade.id, 0 if sample is None else len(sample.labels), before, after)
        return _change(parts, upgrade.id, Action.EVALUATED)


def _go_live(parts: WorkerParts, upgrade: Upgrade) -> bool:
    """Keep the remainder small while the upgrade is ready, and cut over when that was asked for."""
    if _run_batch(parts, upgrade.id):
        return True
    with parts.database.session_scope() as session:
        waiting = count_missing(session, upgrade.gallery_id, upgrade.to_generation_id)
    if waiting > parts.settings.cutover_remainder_items:
        return _catch_up(parts, upgrade)
    if upgrade.cutover == "manual" and upgrade.cutover_requested_at is None:
        return False
    try:
        with parts.database.session_scope() as session:
            cut_over(
                session,
                upgrade.id,
                parts.networks.transform,
                parts.settings.rows_per_chunk,
                parts.settings.cutover_remainder_items,
            )
    except NotComplete as error:
        _fail(parts, upgrade.id, f"The cutover was refused: {error.message}")
    except IllegalTransition:
        events.info("upgrade.cutover_overtaken", upgrade_id=upgrade.id)
    return False


_STEPS: dict[State, Callable[[WorkerParts, Upgrade], bool]] = {
    State.PLANNED: _plan,
    State.TRANSFORMING: _transform,
    State.INDEXING: _build_index,
    State.EVALUATING: _evaluate,
    State.READY: _go_live,
}


def _run_batch(parts: WorkerParts, upgrade_id: int) -> bool:
    """Claim and run one batch; return whether there was one. A failure is recorded and raised again."""
    claim = claim_batch(parts.database, upgrade_id, parts.settings.lease_seconds)
    if claim is None:
        return False
    if claim.attempts > parts.settings.max_batch_attempts:
        _fail(
            parts,
            upgrade_id,
            f"Batch {claim.batch_id} was tried {parts.settings.max_batch_attempts} times and never finished; its last"
            " error is in the worker's log. Retry the upgrade when the cause is gone.",
        )
        return False
    try:
        with parts.database.session_scope() as session:
            work_on_batch(session, claim, parts.networks.transform, parts.settings.rows_per_chunk)
    except NotStorable as error:
        _fail(parts, upgrade_id, f"The transformation gave values that cannot be stored: {error}")
        return False
    except Exception as error:
        with parts.database.session_scope() as session:
            release_batch(session, claim, f"{type(error).__name__}: {error}")
        raise
    return True


def _change(parts: WorkerParts, upgrade_id: int, action: Action) -> bool:
    """Take a worker's edge; False when a user's action (pause, cancel) came first."""
    try:
        with parts.database.session_scope() as session:
            change_state(session, upgrade_id, action)
    except IllegalTransition as error:
        events.info("upgrade.step_overtaken", upgrade_id=upgrade_id, action=str(action), reason=error.message)
        return False
    return True


def _fail(parts: WorkerParts, upgrade_id: int, sentence: str) -> None:
    with parts.database.session_scope() as session:
        fail_upgrade(session, upgrade_id, sentence)


@contextmanager
def _phase(parts: WorkerParts, upgrade_id: int) -> Iterator[bool]:
    """Hold the upgrade's phase lock, if it is free: one worker plans, builds or evaluates. A crash frees it."""
    key = {"space": PHASE_LOCK, "id": upgrade_id % 2**31}
    with parts.database.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        held = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:space, :id)"), key))
        try:
            yield held
        finally:
            if held:
                connection.execute(text("SELECT pg_advisory_unlock(:space, :id)"), key)
