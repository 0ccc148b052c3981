"""What is shown of upgrades beside their rows: the names around them, and their progress, counted from rows.

Many upgrades are described together, by as many queries as one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from statistics import linear_regression

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased

from service.domain.batch_state import BatchState
from service.domain.jobs import INDEX_BUILD, BuildProgress, BuildResult
from service.domain.judging.reports import newest_reports
from service.domain.phases import Phase, phase_of, rate_of
from service.domain.upgrade.upgrades import events_of, get_upgrade
from service.domain.upgrade_state import OPEN, WORKING, State
from service.tables import (
    BatchPhase,
    Gallery,
    Generation,
    Job,
    ModelVersion,
    Report,
    Upgrade,
    UpgradeBatch,
    UpgradeEvent,
)

_RATE_BATCHES = 33
_STEADY_BATCHES = 6
_AFTER_EVALUATING = {State.READY, State.LIVE, State.FINALIZED, State.ROLLED_BACK}


@dataclass(frozen=True)
class UpgradeDetails:
    """An upgrade with the names around it, its progress and its newest report."""

    upgrade: Upgrade
    gallery: str
    from_version: str
    to_version: str
    progress: dict[str, Phase]
    report: Report | None


@dataclass(frozen=True)
class UpgradeNews:
    """What happened to an upgrade: its changes of state, and its progress. `ended` when its state will not change any
    more."""

    changes: list[UpgradeEvent]
    progress: dict[str, Phase]
    ended: bool


@dataclass(frozen=True)
class _Counts:
    """The items of a phase's batches, and its last batches since the state or the speed changed, oldest first, so that
    no pause is part of the rate."""

    done: int
    total: int
    recent: list[tuple[int, datetime]]


_NO_BATCHES = _Counts(0, 0, [])
_Batches = dict[tuple[int, str], _Counts]


def describe_upgrades(session: Session, upgrades: Sequence[Upgrade]) -> list[UpgradeDetails]:
    """Return the details of upgrades, by id."""
    before, after = aliased(Generation), aliased(Generation)
    from_version, to_version = aliased(ModelVersion), aliased(ModelVersion)
    query = (
        select(Upgrade, Gallery.name, from_version.name, to_version.name)
        .join(Gallery, Gallery.id == Upgrade.gallery_id)
        .join(before, before.id == Upgrade.from_generation_id)
        .join(from_version, from_version.id == before.model_version_id)
        .join(after, after.id == Upgrade.to_generation_id)
        .join(to_version, to_version.id == after.model_version_id)
        .where(Upgrade.id.in_([upgrade.id for upgrade in upgrades]))
    )

    progress = progress_of(session, upgrades)
    reports = newest_reports(session, [upgrade.id for upgrade in upgrades])
    return [
        UpgradeDetails(upgrade, gallery, from_name, to_name, progress[upgrade.id], reports.get(upgrade.id))
        for upgrade, gallery, from_name, to_name in session.execute(query.order_by(Upgrade.id))
    ]


def news_of(session: Session, upgrade_id: int) -> UpgradeNews:
    """Return what happened to an upgrade; in a session of one snapshot it fits together."""
    upgrade = get_upgrade(session, upgrade_id)
    return UpgradeNews(
        events_of(session, upgrade_id),
        progress_of(session, [upgrade])[upgrade_id],
        upgrade.state not in OPEN | {State.LIVE},
    )


def progress_of(session: Session, upgrades: Sequence[Upgrade]) -> dict[int, dict[str, Phase]]:
    """Return each upgrade's phases by its id; what rests (paused, failed, speed 0) has no estimate."""
    ids = [upgrade.id for upgrade in upgrades]
    now = session.scalars(select(func.now())).one()
    batches, builds = _count_batches(session, ids), _newest_builds(session, ids)
    return {upgrade.id: _phases(upgrade, batches, builds.get(upgrade.id), now) for upgrade in upgrades}


def _count_batches(session: Session, upgrade_ids: Sequence[int]) -> _Batches:
    """Return the counts of each upgrade's phases that have batches."""
    phase, is_done = (UpgradeBatch.upgrade_id, UpgradeBatch.phase), UpgradeBatch.state == BatchState.DONE

    position = func.row_number().over(
        partition_by=phase, order_by=(UpgradeBatch.done_at.desc(), UpgradeBatch.id.desc())
    )
    since_change = (
        select(*phase, UpgradeBatch.id, UpgradeBatch.items, UpgradeBatch.done_at, position.label("position"))
        .join(Upgrade, Upgrade.id == UpgradeBatch.upgrade_id)
        .where(Upgrade.id.in_(upgrade_ids), is_done, UpgradeBatch.done_at > Upgrade.updated_at)
        .subquery()
    )
    last = select(since_change).where(since_change.c.position <= _RATE_BATCHES)
    recent: dict[tuple[int, str], list[tuple[int, datetime]]] = defaultdict(list)
    for batch in session.execute(last.order_by(since_change.c.done_at, since_change.c.id)):
        recent[batch.upgrade_id, batch.phase].append((batch.items, batch.done_at))

    done = func.coalesce(func.sum(UpgradeBatch.items).filter(is_done), 0)
    sums = select(*phase, done, func.sum(UpgradeBatch.items)).where(UpgradeBatch.upgrade_id.in_(upgrade_ids))
    return {
        (upgrade_id, name): _Counts(int(done), int(total), recent[upgrade_id, name])
        for upgrade_id, name, done, total in session.execute(sums.group_by(*phase))
    }


def _newest_builds(session: Session, upgrade_ids: Sequence[int]) -> dict[int | None, Job]:
    """Return the job that builds, or built, each upgrade's index."""
    query = select(Job).where(Job.upgrade_id.in_(upgrade_ids), Job.kind == INDEX_BUILD)
    newest = query.ext(distinct_on(Job.upgrade_id)).order_by(Job.upgrade_id, Job.id.desc())
    return {job.upgrade_id: job for job in session.scalars(newest)}


def _phases(upgrade: Upgrade, batches: _Batches, build: Job | None, now: datetime) -> dict[str, Phase]:
    state = upgrade.state
    moving = state in WORKING and upgrade.speed > 0
    reached = upgrade.resume_state if state in (State.PAUSED, State.FAILED) and upgrade.resume_state else state

    def of_batches(phase: BatchPhase) -> Phase:
        return _items(upgrade, batches.get((upgrade.id, phase), _NO_BATCHES), now, moving)

    return {
        "transforming": of_batches("transforming"),
        "catching_up": of_batches("catching_up"),
        "indexing": _rows(build, now, moving),
        **({} if upgrade.smoothing is None else {"smoothing": of_batches("smoothing")}),
        "evaluating": phase_of(int(reached in _AFTER_EVALUATING), 1, "evaluation"),
    }


def _items(upgrade: Upgrade, batches: _Counts, now: datetime, moving: bool) -> Phase:
    """Return a phase of batches.

    Its rate is the slope of a line through the last ones: several may end at once, and then none for a while. Of few
    batches, it is that of all since the state or the speed changed, at full speed only: below, rests are yet to come.
    """
    rate, since_seconds = None, 0.0
    if batches.recent:
        items, done_at = zip(*batches.recent, strict=True)
        if len(items) >= _STEADY_BATCHES:
            rate = _slope([(at - done_at[0]).total_seconds() for at in done_at], list(accumulate(map(float, items))))
        elif upgrade.speed == 1:
            rate = rate_of(sum(items), (done_at[-1] - upgrade.updated_at).total_seconds())
        since_seconds = (now - done_at[-1]).total_seconds()
    return phase_of(batches.done, batches.total, "items", rate, since_seconds=since_seconds, moving=moving)


def _rows(build: Job | None, now: datetime, moving: bool) -> Phase:
    if build is None or (not build.progress and build.result is None):
        return phase_of(0, 0, "rows")
    if build.result is not None:
        result = BuildResult.from_json(build.result)
        return phase_of(result.rows, result.rows, "rows", rate_of(result.rows, result.seconds))
    built = BuildProgress.from_json(build.progress)
    rate = rate_of(built.done, (build.updated_at - build.created_at).total_seconds())
    since_seconds = (now - build.updated_at).total_seconds()
    return phase_of(built.done, built.total, "rows", rate, since_seconds=since_seconds, moving=moving)


def _slope(seconds: list[float], done: list[float]) -> float | None:
    return linear_regression(seconds, done).slope if len(set(seconds)) > 1 else None
