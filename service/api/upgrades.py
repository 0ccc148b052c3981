"""`/v1/galleries/{g}/upgrades` and `/v1/upgrades/{id}`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from service.api.dependencies import IdPath, Name, NamePath, Parts, PartsDependency, Session, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.domain.judging.gates import GateMetric, GateRule
from service.domain.upgrade import upgrades
from service.domain.upgrade.dry_run import DryRun
from service.domain.upgrade.planning import WantedUpgrade
from service.domain.upgrade.progress import UpgradeDetails, UpgradeNews, describe_upgrades, news_of
from service.domain.upgrade_state import Action
from service.domain.verdict import Verdict
from service.tables import CutoverOption, Upgrade

if TYPE_CHECKING:
    from service.domain.phases import Phase

router = APIRouter(tags=["upgrades"])

Speed = Annotated[float, Field(ge=0, le=1)]


class GateRuleView(BaseModel):
    """`metric` must not be below `limit`; of one slice (`attribute=value`, `cmc_at_1` alone) where there is one."""

    model_config = ConfigDict(extra="forbid")

    metric: GateMetric
    limit: Annotated[float, Field(ge=-1_000, le=1, allow_inf_nan=False)]
    slice: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None


class NewUpgrade(BaseModel):
    """`transformation` is the id of one to use; else the path of fewest hops is found. `cutover` `auto` goes live by
    itself once its report passes. `speed` is the share of the time that each worker works on it. `gates` replace or add
    to the default ones; with `observe` the upgrade is judged, and no verdict holds it up. With `dry_run` nothing is
    written: the answer says what the upgrade would take."""

    model_config = ConfigDict(extra="forbid")

    to_version: Name
    transformation: int | None = None
    cutover: CutoverOption = "manual"
    speed: Speed = 1.0
    gates: Annotated[list[GateRuleView], Field(max_length=100)] = []
    observe: bool = False
    dry_run: bool = False


class Override(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1_000)]


class NewCutover(BaseModel):
    """`override` lets an upgrade go live although gates of its newest report failed; its reason is recorded."""

    model_config = ConfigDict(extra="forbid")

    override: Override | None = None


class VerdictView(BaseModel):
    """What the newest report, of this number, says: `pass`, `fail`, `inconclusive` or `not_judged`."""

    report: int
    verdict: Verdict


class DecisionView(BaseModel):
    """On what verdict, of which report, an upgrade went live: `by` itself (`auto`) or by `request`, and for what
    `reason` past gates that failed."""

    by: str
    reason: str | None
    verdict: Verdict
    report: int | None


class NewSpeed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    speed: Speed


class LegView(BaseModel):
    generation: int
    transformations: list[int]


class PhaseView(BaseModel):
    done: int
    total: int
    unit: str
    rate: float | None
    eta_seconds: float | None


class DryRunView(BaseModel):
    """`reason` says why the path is this one, and what would make a shorter one possible. `bytes` go into the database
    and `index_bytes` into the blob store; `seconds` is for one worker at the rate that was measured on `measured_items`
    rows, without the index; null for an empty gallery."""

    path: list[LegView]
    reason: str
    items: int
    bytes: int
    index_bytes: int
    measured_items: int
    seconds: float | None


class UpgradeView(BaseModel):
    id: int
    gallery: str
    state: str
    cutover: str
    speed: float
    from_version: str
    to_version: str
    from_generation: int
    to_generation: int
    path: list[LegView]
    progress: dict[str, PhaseView]
    observe: bool
    gates: list[GateRuleView]
    judged: VerdictView | None
    decision: DecisionView | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    live_at: datetime | None
    finished_at: datetime | None


def _known_upgrade(upgrade_id: IdPath, session: SessionDependency) -> int:
    return upgrades.get_upgrade(session, upgrade_id).id


def _view(session: Session, upgrade: Upgrade) -> UpgradeView:
    (details,) = describe_upgrades(session, [upgrade])
    return _view_of(details)


def _view_of(details: UpgradeDetails) -> UpgradeView:
    upgrade, report = details.upgrade, details.report
    return UpgradeView(
        id=upgrade.id,
        gallery=details.gallery,
        state=upgrade.state,
        cutover=upgrade.cutover,
        speed=upgrade.speed,
        from_version=details.from_version,
        to_version=details.to_version,
        from_generation=upgrade.from_generation_id,
        to_generation=upgrade.to_generation_id,
        path=[LegView(**leg.to_json()) for leg in upgrade.legs],
        progress={name: PhaseView(**asdict(phase)) for name, phase in details.progress.items()},
        observe=upgrade.observe,
        gates=[GateRuleView(**rule) for rule in upgrade.gates],
        judged=None if report is None else VerdictView(report=report.number, verdict=report.verdict),
        decision=DecisionView(**upgrade.decision) if upgrade.decision and upgrade.live_at else None,
        error=upgrade.error,
        created_at=upgrade.created_at,
        updated_at=upgrade.updated_at,
        live_at=upgrade.live_at,
        finished_at=upgrade.finished_at,
    )


@router.post("/galleries/{name}/upgrades", status_code=202, responses={200: {"model": DryRunView}})
def plan_upgrade(
    name: NamePath, new: NewUpgrade, parts: PartsDependency, response: Response
) -> UpgradeView | DryRunView:
    """Start an upgrade: the worker derives the next generation while the active one goes on answering."""
    gates = [GateRule(rule.metric, rule.limit, rule.slice) for rule in new.gates]
    wanted = WantedUpgrade(
        name, new.to_version, new.transformation, new.cutover, new.speed, new.dry_run, gates, new.observe
    )
    found = parts.upgrade_actions.plan(wanted)
    if isinstance(found, DryRun):
        response.status_code = 200
        return _dry_run_view(found)
    response.headers["Location"] = f"/v1/upgrades/{found.upgrade.id}"
    return _view_of(found)


def _dry_run_view(found: DryRun) -> DryRunView:
    return DryRunView(
        path=[LegView(**leg.to_json()) for leg in found.legs],
        reason=found.reason,
        items=found.items,
        bytes=found.bytes,
        index_bytes=found.index_bytes,
        measured_items=found.measured_items,
        seconds=found.seconds,
    )


@router.get("/galleries/{name}/upgrades")
def list_upgrades(
    name: NamePath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[UpgradeView]:
    """Return a gallery's upgrades, oldest first."""
    found = upgrades.list_upgrades(session, name, decode_cursor(cursor), limit + 1)
    views = [_view_of(details) for details in describe_upgrades(session, found)]
    return page_of(views, [upgrade.id for upgrade in found], limit)


@router.get("/upgrades/{upgrade_id}")
def get_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Return an upgrade with its progress, counted from rows."""
    return _view(session, upgrades.get_upgrade(session, upgrade_id))


@router.get("/upgrades/{upgrade_id}/events", response_class=EventSourceResponse)
async def stream_events(
    upgrade_id: Annotated[int, Depends(_known_upgrade)],
    parts: PartsDependency,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the upgrade's changes of state (`state`, each with an id, from after `Last-Event-ID` on) and its progress
    (`progress`, whenever it changed); ends when the upgrade has ended."""
    shown: dict[str, Phase] | None = None
    while True:
        news = await run_in_threadpool(_look, parts, upgrade_id, last_event_id)
        for change in news.changes:
            last_event_id = change.id
            data = {"state": change.state, "error": change.error, "at": change.at}
            yield ServerSentEvent(event="state", id=str(change.id), data=data)
        if news.progress != shown:
            shown = news.progress
            yield ServerSentEvent(event="progress", data=shown)
        if news.ended:
            return
        await asyncio.sleep(parts.settings.follow_every_seconds)


def _look(parts: Parts, upgrade_id: int, after_event_id: int) -> UpgradeNews:
    with parts.database.session_scope(snapshot=True) as session:
        return news_of(session, upgrade_id, after_event_id)


@router.patch("/upgrades/{upgrade_id}")
def set_speed(upgrade_id: IdPath, new: NewSpeed, session: SessionDependency) -> UpgradeView:
    """Throttle an open upgrade, from each worker's next batch on; 0 stops it."""
    return _view(session, upgrades.set_speed(session, upgrade_id, new.speed))


@router.post("/upgrades/{upgrade_id}/pause")
def pause_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Pause; answered when no batch is in flight."""
    return _view(session, upgrades.change_state(session, upgrade_id, Action.PAUSE))


@router.post("/upgrades/{upgrade_id}/resume")
def resume_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Go on where the pause was."""
    return _view(session, upgrades.change_state(session, upgrade_id, Action.RESUME))


@router.post("/upgrades/{upgrade_id}/retry")
def retry_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Go on after a failure; finished batches are kept."""
    return _view(session, upgrades.retry_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/cancel")
def cancel_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Give up an upgrade that is not live; its generation is dropped."""
    parts.upgrade_actions.cancel(upgrade_id)
    return _current_view(parts, upgrade_id)


@router.post("/upgrades/{upgrade_id}/cutover")
def cut_over(upgrade_id: IdPath, parts: PartsDependency, new: NewCutover | None = None) -> UpgradeView:
    """Make a ready upgrade live; answered when queries here are answered by the new model version. 409 names the gates
    that failed; it goes live past them with `override` alone."""
    override = new.override.reason if new and new.override else None
    parts.upgrade_actions.cut_over(upgrade_id, override)
    return _current_view(parts, upgrade_id)


@router.post("/upgrades/{upgrade_id}/rollback")
def roll_back(upgrade_id: IdPath, parts: PartsDependency, accept_loss: bool = False) -> UpgradeView:
    """Make the previous generation active again. 409 names the items that only the new generation has; they are
    deleted with `accept_loss=true`."""
    parts.upgrade_actions.roll_back(upgrade_id, accept_loss=accept_loss)
    return _current_view(parts, upgrade_id)


@router.post("/upgrades/{upgrade_id}/finalize")
def finalize(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Drop the previous generation of a live upgrade; from then on there is no rollback."""
    parts.upgrade_actions.finalize(upgrade_id)
    return _current_view(parts, upgrade_id)


def _current_view(parts: Parts, upgrade_id: int) -> UpgradeView:
    with parts.database.session_scope() as session:
        return _view(session, upgrades.get_upgrade(session, upgrade_id))
