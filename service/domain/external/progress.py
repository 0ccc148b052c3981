"""What is shown of upgrades of other stores beside their rows: the names around them, and their progress, counted from
rows. Many are described together, by as many queries as one."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.domain.external.reports import newest_reports
from service.domain.external.upgrades import events_of, get_external_upgrade
from service.domain.external_state import OPEN, WORKING, ExternalState
from service.domain.phases import Phase, phase_of, rate_of
from service.tables import ExternalBatch, ExternalEvent, ExternalReport, ExternalUpgrade, ModelVersion

_PHASES = {
    ExternalState.PLANNED: "transforming",
    ExternalState.TRANSFORMING: "transforming",
    ExternalState.VERIFYING: "verifying",
}


@dataclass(frozen=True)
class ExternalDetails:
    """An upgrade with the names of its versions, its progress, and its newest report, if there is one."""

    upgrade: ExternalUpgrade
    from_version: str
    to_version: str
    progress: dict[str, Phase]
    report: ExternalReport | None


@dataclass(frozen=True)
class ExternalNews:
    """What happened to an upgrade: its changes of state and its progress. `ended` when its state will not change any
    more."""

    changes: list[ExternalEvent]
    progress: dict[str, Phase]
    ended: bool


def describe_external_upgrades(session: Session, upgrades: Sequence[ExternalUpgrade]) -> list[ExternalDetails]:
    """Return the details of upgrades, by id."""
    wanted = {version for upgrade in upgrades for version in (upgrade.from_version_id, upgrade.to_version_id)}
    named = select(ModelVersion.id, ModelVersion.name).where(ModelVersion.id.in_(wanted))
    names = {row.id: row.name for row in session.execute(named)}
    reports = newest_reports(session, [upgrade.id for upgrade in upgrades])
    progress = progress_of(session, upgrades)
    return [
        ExternalDetails(
            upgrade,
            names[upgrade.from_version_id],
            names[upgrade.to_version_id],
            progress[upgrade.id],
            reports.get(upgrade.id),
        )
        for upgrade in sorted(upgrades, key=lambda upgrade: upgrade.id)
    ]


def news_of(session: Session, upgrade_id: int) -> ExternalNews:
    """Return what happened to an upgrade; in a session of one snapshot it fits together."""
    upgrade = get_external_upgrade(session, upgrade_id)
    ended = upgrade.state not in OPEN and upgrade.state is not ExternalState.LIVE
    return ExternalNews(events_of(session, upgrade_id), progress_of(session, [upgrade])[upgrade_id], ended)


def progress_of(session: Session, upgrades: Sequence[ExternalUpgrade]) -> dict[int, dict[str, Phase]]:
    """Return each upgrade's one phase by its id, which is its newest pass; what rests has no estimate.

    The rate is that of all ranges since the state, the speed or the pass changed, until the last one of them.
    """
    since_change = ExternalBatch.done_at > ExternalUpgrade.updated_at
    query = (
        select(
            ExternalBatch.upgrade_id,
            func.count(),
            func.count(ExternalBatch.done_at),
            func.count().filter(since_change),
            func.extract("epoch", func.max(ExternalBatch.done_at) - func.max(ExternalUpgrade.updated_at)),
            func.extract("epoch", func.now() - func.max(ExternalBatch.done_at)),
        )
        .join(
            ExternalUpgrade,
            (ExternalUpgrade.id == ExternalBatch.upgrade_id)
            & (ExternalUpgrade.pass_number == ExternalBatch.pass_number),
        )
        .where(ExternalBatch.upgrade_id.in_([upgrade.id for upgrade in upgrades]))
        .group_by(ExternalBatch.upgrade_id)
    )
    counts = {row[0]: row[1:] for row in session.execute(query)}
    return {
        upgrade.id: {_name_of(upgrade): _phase(upgrade, *counts.get(upgrade.id, (0, 0, 0, 0, 0)))}
        for upgrade in upgrades
    }


def _name_of(upgrade: ExternalUpgrade) -> str:
    state = upgrade.resume_state if upgrade.state in (ExternalState.PAUSED, ExternalState.FAILED) else upgrade.state
    return _PHASES.get(state or upgrade.state, "following")


def _phase(
    upgrade: ExternalUpgrade, total: int, done: int, recent: int, seconds: float | None, since: float | None
) -> Phase:
    rate = rate_of(recent, float(seconds)) if recent and seconds else None
    moving = upgrade.state in WORKING and upgrade.speed > 0
    return phase_of(done, total, "ranges", rate, since_seconds=float(since or 0), moving=moving)
