"""`/v1/galleries/{g}/upgrades` and `/v1/upgrades/{id}`."""

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from service.access.operations import require
from service.api.bakes import NewBake
from service.api.dependencies import IdPath, Name, NamePath, Parts, PartsDependency, Session, SessionDependency
from service.api.event_streams import EventStream, TooManyStreams, stream_news
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.speed import Speed
from service.api.upgrade_views import GateRuleView, LegView, SmoothingView, UpgradeView, upgrade_view
from service.disk import NoRoom
from service.domain.choice import AmbiguousTransformation, NoSoundTransformation
from service.domain.gallery.galleries import UnknownGallery
from service.domain.indexes.engine import SmoothingNotPossible
from service.domain.indexes.removal import StillRead
from service.domain.judging.gates import GateRule, UnknownGate
from service.domain.judging.reports import GatesHold
from service.domain.registry.transformations import UnknownTransformation
from service.domain.registry.versions import UnknownVersion
from service.domain.state_table import IllegalTransition
from service.domain.upgrade import changes, upgrades
from service.domain.upgrade.actions import CutoverRefused, NotSwitched, NoWorkerAnswered
from service.domain.upgrade.changes import NoBake, UpgradeChange
from service.domain.upgrade.cutover import NotComplete, OtherUpgradeFirst, RollbackWouldLose
from service.domain.upgrade.dry_run import DryRun, ItemsRefused
from service.domain.upgrade.paths import ErasesItems, NoPath
from service.domain.upgrade.planning import AlreadyThere, UpgradeOpen, WantedUpgrade
from service.domain.upgrade.smoothing import Smoothing
from service.domain.upgrade.trials import BakeRuns
from service.domain.upgrade.upgrades import NotReady, UnknownUpgrade, UpgradeEnded
from service.domain.upgrade_state import Action
from service.networks.encoders import VersionWithoutNetworks
from service.networks.transformations import TransformationFailed
from service.tables import CutoverOption, Upgrade

router = APIRouter(tags=["upgrades"], route_class=JsonRoute)

Share = Annotated[float, Field(ge=0, le=1)]


class NewUpgrade(Body):
    """`transformation` is the id of one to use; else the path of fewest hops is found. `cutover` `auto` goes live by
    itself once its report passes. `speed` is the share of the time that each worker works on it. `gates` replace or add
    to the default ones; with `observe` the upgrade is judged, and no verdict holds it up. `bake` watches it after its
    cutover. With `smoothing` rows move towards their neighbors before they are judged, which suits galleries that are
    searched for any item of a class, and costs how often an item is found by its own image. With `dry_run` nothing is
    written: the answer says what the upgrade would take."""

    to_version: Name
    transformation: Annotated[int, Field(ge=1, le=2**53)] | None = None
    cutover: CutoverOption = "manual"
    speed: Speed = 1.0
    gates: Annotated[list[GateRuleView], Field(max_length=100)] = Field(default=[])
    observe: bool = False
    bake: NewBake | None = None
    smoothing: SmoothingView | None = None
    dry_run: bool = False


class Override(Body):
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1_000)]


class NewCutover(Body):
    """`override` lets an upgrade go live although gates of its newest report failed; its reason is recorded."""

    override: Override | None = None


class UpgradeChangeView(Body):
    """What is to change; at least one of them. `canary` is the share of image queries that the candidate answers while
    the upgrade is ready. With `bake` null the upgrade is not baked, or not any more."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    speed: Speed | SkipJsonSchema[None] = None
    canary: Share | SkipJsonSchema[None] = None
    bake: NewBake | None = None

    @model_validator(mode="after")
    def _is_a_change(self) -> Self:
        given = self.model_fields_set
        if not given or any(getattr(self, name) is None for name in given - {"bake"}):
            raise ValueError("Give speed, canary, bake, or several of them.")
        return self

    def wanted(self) -> UpgradeChange:
        bake = self.bake.wanted() if self.bake else NoBake() if "bake" in self.model_fields_set else None
        return UpgradeChange(self.speed, self.canary, bake)


class WorkAheadView(BaseModel):
    """`upgrades` that need workers have `items` to transform; `trainings` give way to upgrades; `index_builds` that are
    under way do not."""

    upgrades: list[int]
    items: int
    trainings: int
    index_builds: int


class DryRunView(BaseModel):
    """`reason` says why the path is this one, and what would make a shorter one possible. `bytes` go into the database
    and `index_bytes` into the blob store; `seconds` is for one worker at the rate that was measured on `measured_items`
    rows, without the index and smoothing; null for an empty gallery. `ahead` is what workers have at hand, and
    `seconds_ahead` what one may take for it, without index builds, before it turns to this upgrade. `warnings` are
    sentences on what the upgrade will want of somebody."""

    path: list[LegView]
    reason: str
    items: int
    bytes: int
    index_bytes: int
    measured_items: int
    seconds: float | None
    ahead: WorkAheadView
    seconds_ahead: float | None
    warnings: list[str]


def _known_upgrade(upgrade_id: IdPath, session: SessionDependency) -> int:
    return upgrades.get_upgrade(session, upgrade_id).id


def _view(parts: Parts, act: Callable[[Session], Upgrade]) -> UpgradeView:
    """Show the upgrade that an action returns."""
    (details,) = parts.upgrade_actions.described(lambda session: [act(session)])
    return upgrade_view(details)


@router.post(
    "/galleries/{name}/upgrades",
    status_code=202,
    responses=refusals(
        UnknownGallery,
        UnknownVersion,
        UnknownTransformation,
        UpgradeOpen,
        AlreadyThere,
        NoPath,
        ErasesItems,
        AmbiguousTransformation,
        NoSoundTransformation,
        ItemsRefused,
        TransformationFailed,
        UnknownGate,
        SmoothingNotPossible,
        NoRoom,
    )
    | {200: {"model": DryRunView}},
)
def plan_upgrade(
    name: NamePath, new: NewUpgrade, parts: PartsDependency, response: Response
) -> UpgradeView | DryRunView:
    """Start an upgrade: the worker derives the next generation while the active one goes on answering."""
    if new.cutover == "auto":
        require("cutover", "an upgrade that goes live by itself")
    if new.observe or new.gates:
        require("override", "an upgrade with gates of its own, or with none")
    gates = [GateRule(rule.metric, rule.limit, rule.slice) for rule in new.gates]
    bake = None if new.bake is None else new.bake.wanted()
    wanted = WantedUpgrade(
        gallery_name=name,
        to_version=new.to_version,
        transformation_id=new.transformation,
        cutover=new.cutover,
        speed=new.speed,
        dry_run=new.dry_run,
        gates=gates,
        observe=new.observe,
        bake=bake,
        smoothing=None if new.smoothing is None else Smoothing(**new.smoothing.model_dump()),
    )
    found = parts.upgrade_actions.plan(wanted)
    if isinstance(found, DryRun):
        response.status_code = 200
        return _dry_run_view(found)
    response.headers["Location"] = f"/v1/upgrades/{found.upgrade.id}"
    return upgrade_view(found)


def _dry_run_view(found: DryRun) -> DryRunView:
    return DryRunView(
        path=[LegView(**leg.to_json()) for leg in found.legs],
        reason=found.reason,
        items=found.items,
        bytes=found.bytes,
        index_bytes=found.index_bytes,
        measured_items=found.measured_items,
        seconds=found.seconds,
        ahead=WorkAheadView(**asdict(found.ahead)),
        seconds_ahead=found.seconds_ahead,
        warnings=found.warnings,
    )


@router.get("/galleries/{name}/upgrades", responses=refusals(UnknownGallery, NotSwitched))
def list_upgrades(
    name: NamePath, parts: PartsDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[UpgradeView]:
    """Return a gallery's upgrades, oldest first."""
    return _page(parts, name, limit, cursor)


@router.get("/upgrades", responses=refusals(NotSwitched))
def list_all_upgrades(parts: PartsDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[UpgradeView]:
    """Return the upgrades of all galleries, oldest first."""
    return _page(parts, None, limit, cursor)


def _page(parts: Parts, gallery: str | None, limit: int, cursor: str | None) -> Page[UpgradeView]:
    after_id = decode_cursor(cursor)
    found = parts.upgrade_actions.described(
        lambda session: upgrades.list_upgrades(session, gallery, after_id, limit + 1)
    )
    return page_of([upgrade_view(details) for details in found], [details.upgrade.id for details in found], limit)


@router.get("/upgrades/{upgrade_id}", responses=refusals(UnknownUpgrade, NotSwitched))
def get_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Return an upgrade with its progress, counted from rows."""
    return _current_view(parts, upgrade_id)


@router.get(
    "/upgrades/{upgrade_id}/events",
    response_class=EventSourceResponse,
    responses=refusals(UnknownUpgrade, TooManyStreams),
)
async def stream_events(
    upgrade_id: Annotated[int, Depends(_known_upgrade)],
    parts: PartsDependency,
    stream: EventStream,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the upgrade's changes of state (`state`) and what is noted of its canary and its bake (`note`), each with
    an id, from after `Last-Event-ID` on, and its progress (`progress`, whenever it changed); ends when the upgrade has
    ended."""
    async for event in stream_news(
        stream, ("upgrade", upgrade_id), partial(parts.upgrade_actions.news, upgrade_id), last_event_id
    ):
        yield event


@router.patch(
    "/upgrades/{upgrade_id}",
    responses=refusals(
        UnknownUpgrade, UpgradeEnded, NotReady, GatesHold, BakeRuns, NotSwitched, VersionWithoutNetworks
    ),
)
def change_upgrade(upgrade_id: IdPath, change: UpgradeChangeView, parts: PartsDependency) -> UpgradeView:
    """Throttle an open upgrade with `speed`, from each worker's next batch on; 0 stops it. Let the candidate of a ready
    one answer a share of image queries with `canary`. Say how it is baked with `bake`; null ends a bake that runs."""
    if change.canary:
        require("cutover", "a canary")
    return _view(parts, lambda session: changes.change_upgrade(session, upgrade_id, change.wanted()))


@router.post("/upgrades/{upgrade_id}/pause", responses=refusals(UnknownUpgrade, IllegalTransition))
def pause_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Pause; answered when no batch is in flight."""
    return _view(parts, lambda session: upgrades.pause_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/resume", responses=refusals(UnknownUpgrade, IllegalTransition))
def resume_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Go on where the pause was."""
    return _view(parts, lambda session: upgrades.change_state(session, upgrade_id, Action.RESUME))


@router.post("/upgrades/{upgrade_id}/retry", responses=refusals(UnknownUpgrade, IllegalTransition))
def retry_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Go on after a failure; finished batches are kept."""
    return _view(parts, lambda session: upgrades.retry_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/cancel", responses=refusals(UnknownUpgrade, IllegalTransition, StillRead))
def cancel_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Give up an upgrade that is not live; its generation is dropped."""
    parts.upgrade_actions.cancel(upgrade_id)
    return _current_view(parts, upgrade_id)


@router.post(
    "/upgrades/{upgrade_id}/cutover",
    responses=refusals(UnknownUpgrade, IllegalTransition, GatesHold, CutoverRefused, NoWorkerAnswered),
)
def cut_over(upgrade_id: IdPath, parts: PartsDependency, new: NewCutover | None = None) -> UpgradeView:
    """Make a ready upgrade live; answered when queries here are answered by the new model version. 409 names the gates
    that failed; it goes live past them with `override` alone."""
    override = new.override.reason if new and new.override else None
    if override is not None:
        require("override", "a cutover past gates that failed")
    parts.upgrade_actions.cut_over(upgrade_id, override)
    return _current_view(parts, upgrade_id)


@router.post(
    "/upgrades/{upgrade_id}/rollback",
    responses=refusals(UnknownUpgrade, IllegalTransition, NotComplete, RollbackWouldLose, OtherUpgradeFirst, StillRead),
)
def roll_back(upgrade_id: IdPath, parts: PartsDependency, accept_loss: bool = False) -> UpgradeView:
    """Make the previous generation active again. 409 names the items that only the new generation has; they are
    deleted with `accept_loss=true`."""
    parts.upgrade_actions.roll_back(upgrade_id, accept_loss=accept_loss)
    return _current_view(parts, upgrade_id)


@router.post(
    "/upgrades/{upgrade_id}/finalize",
    responses=refusals(UnknownUpgrade, IllegalTransition, BakeRuns, OtherUpgradeFirst, StillRead),
)
def finalize(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Drop the previous generation of a live upgrade; from then on there is no rollback."""
    parts.upgrade_actions.finalize(upgrade_id)
    return _current_view(parts, upgrade_id)


def _current_view(parts: Parts, upgrade_id: int) -> UpgradeView:
    return _view(parts, lambda session: upgrades.get_upgrade(session, upgrade_id))
