"""`/v1/external-upgrades`: galleries that live in other stores (`/v1/stores`), upgraded there."""

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from service.access.operations import require
from service.api.dependencies import IdPath, Name, Parts, PartsDependency, Session, SessionDependency
from service.api.event_streams import EventStream, TooManyStreams, stream_news
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.speed import NewSpeed, Speed
from service.api.stores import DescriptionView
from service.api.upgrade_views import PhaseView, VerdictView
from service.api.upgrades import NewCutover
from service.connectors.named import UnknownStore
from service.connectors.store import StoreAway, StoreRefused
from service.domain.choice import AmbiguousTransformation, NoSoundTransformation
from service.domain.external import actions, planning, reports, upgrades
from service.domain.external.actions import SwitchedElsewhere
from service.domain.external.planning import NoTransformation, Outline, StoreOfOtherSpace, StoreTaken, WantedExternal
from service.domain.external.progress import ExternalDetails, ExternalNews, describe_external_upgrades, news_of
from service.domain.external.upgrades import ExternalUpgradeEnded, UnknownExternalUpgrade
from service.domain.external_state import ExternalAction
from service.domain.judging.reports import GatesHold
from service.domain.registry.transformations import UnknownTransformation
from service.domain.registry.versions import UnknownVersion
from service.domain.state_table import IllegalTransition
from service.domain.verdict import Verdict
from service.tables import CutoverOption, ExternalUpgrade

router = APIRouter(tags=["external upgrades"], route_class=JsonRoute)


class NewExternalUpgrade(Body):
    """`store` is a name of the operator's. `transformation` is the id of one to use; else one is chosen. `cutover`
    `auto` switches the store by itself once its report passes. `speed` is the share of the time that each worker works
    on it. With `dry_run` nothing is written, here or there: the answer says what the upgrade would take."""

    store: Name
    from_version: Name
    to_version: Name
    transformation: Annotated[int, Field(ge=1, le=2**53)] | None = None
    cutover: CutoverOption = "manual"
    speed: Speed = 1.0
    dry_run: bool = False


class ExternalDryRunView(BaseModel):
    """`rows` in `ranges` would be read, and `bytes` of vectors written beside them. `switch` says what a cutover does,
    and `cannot_judge` what no check can tell."""

    transformation: int
    rows: int
    ranges: int
    bytes: int
    description: DescriptionView
    switch: str
    cannot_judge: list[str]


class VerificationView(BaseModel):
    """What comparing both sides of the store found. `ids_sha256` is over the ids of both sides, which were equal range
    by range; `rows_transformed_anew` of the rows were compared with what the new side has, in the store's
    `number_format`, and differ by `largest_difference` of their norm at most."""

    passes: int
    ranges: int
    rows: int
    rows_in_store: int
    ids_sha256: str
    new_side_sha256: str
    changed_ranges: int
    repaired_ranges: int
    rows_transformed_anew: int
    largest_difference: float
    number_format: str


class ExternalDecisionView(BaseModel):
    """On what verdict, of which report, the store is switched, or was: `by` itself (`auto`) or by `request`, whose, and
    for what `reason` past gates that failed."""

    by: str
    who: str | None
    reason: str | None
    verdict: Verdict
    report: int | None


class LateView(BaseModel):
    """What was written on the old side around the switch, of a store that does not say: how many ranges, and in these
    the keys whose new side is not made of the old one. They are left as they are. `error` is why it is not known."""

    changed_ranges: int | None = None
    conflicts: int | None = None
    conflicting_keys: list[str] = []
    error: str | None = None


class ExternalUpgradeView(BaseModel):
    """`pass_number` is how often the store's ranges have been gone over. `cutover_requested_at` is set until the store
    is switched, and `removed_at` when what the upgrade left in the store is gone."""

    id: int
    store: str
    state: str
    cutover: str
    speed: float
    from_version: str
    to_version: str
    transformation: int
    description: DescriptionView
    progress: dict[str, PhaseView]
    pass_number: int
    verification: VerificationView | None
    judged: VerdictView | None
    decision: ExternalDecisionView | None
    late: LateView | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    cutover_requested_at: datetime | None
    live_at: datetime | None
    finished_at: datetime | None
    removed_at: datetime | None


_OF_STORES = (UnknownStore, StoreRefused, StoreAway)


def _known(external_id: IdPath, session: SessionDependency) -> int:
    return upgrades.get_external_upgrade(session, external_id).id


def _view(session: Session, upgrade: ExternalUpgrade) -> ExternalUpgradeView:
    (details,) = describe_external_upgrades(session, [upgrade])
    return _view_of(details)


def _done(parts: Parts, act: Callable[[Session], ExternalUpgrade]) -> ExternalUpgradeView:
    """Commit an action, then show its upgrade."""
    with parts.database.session_scope() as session:
        upgrade_id = act(session).id
    with parts.database.session_scope() as session:
        return _view(session, upgrades.get_external_upgrade(session, upgrade_id))


def _view_of(details: ExternalDetails) -> ExternalUpgradeView:
    upgrade, report = details.upgrade, details.report
    return ExternalUpgradeView(
        id=upgrade.id,
        store=upgrade.store,
        state=upgrade.state,
        cutover=upgrade.cutover,
        speed=upgrade.speed,
        from_version=details.from_version,
        to_version=details.to_version,
        transformation=upgrade.transformation_id,
        description=DescriptionView(**asdict(upgrade.description)),
        progress={name: PhaseView(**asdict(phase)) for name, phase in details.progress.items()},
        pass_number=upgrade.pass_number,
        verification=None if upgrade.findings is None else VerificationView(**asdict(upgrade.findings)),
        judged=None if report is None else VerdictView(report=report.number, verdict=report.verdict),
        decision=_decision_view(upgrade),
        late=None if not upgrade.late else LateView(**asdict(upgrade.late)),
        error=upgrade.error,
        created_at=upgrade.created_at,
        updated_at=upgrade.updated_at,
        cutover_requested_at=upgrade.cutover_requested_at,
        live_at=upgrade.live_at,
        finished_at=upgrade.finished_at,
        removed_at=upgrade.cleaned_at,
    )


def _decision_view(upgrade: ExternalUpgrade) -> ExternalDecisionView | None:
    decision = upgrade.decision
    if decision is None:
        return None
    who = None if decision.asked_by is None else decision.asked_by.name
    return ExternalDecisionView(who=who, **asdict(decision))


@router.post(
    "/external-upgrades",
    status_code=202,
    responses=refusals(
        *_OF_STORES,
        UnknownVersion,
        UnknownTransformation,
        StoreTaken,
        StoreOfOtherSpace,
        NoTransformation,
        AmbiguousTransformation,
        NoSoundTransformation,
    )
    | {200: {"model": ExternalDryRunView}},
)
def plan_external_upgrade(
    new: NewExternalUpgrade, parts: PartsDependency, response: Response
) -> ExternalUpgradeView | ExternalDryRunView:
    """Upgrade a gallery in another store: a worker writes the new side beside the old one, which goes on answering."""
    if new.cutover == "auto":
        require("cutover", "an upgrade that goes live by itself")
    wanted = WantedExternal(new.store, new.from_version, new.to_version, new.transformation, new.cutover, new.speed)
    if new.dry_run:
        response.status_code = 200
        with parts.database.session_scope() as session:
            return _dry_run_view(planning.outline(session, parts.stores, parts.settings, wanted))
    view = _done(parts, lambda session: planning.plan_external_upgrade(session, parts.stores, parts.settings, wanted))
    response.headers["Location"] = f"/v1/external-upgrades/{view.id}"
    return view


def _dry_run_view(found: Outline) -> ExternalDryRunView:
    return ExternalDryRunView(
        transformation=found.transformation.id,
        rows=found.description.rows,
        ranges=found.ranges,
        bytes=found.bytes,
        description=DescriptionView(**asdict(found.description)),
        switch=found.switch,
        cannot_judge=found.cannot_judge,
    )


@router.get("/external-upgrades")
def list_external_upgrades(
    session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[ExternalUpgradeView]:
    """Return the upgrades of other stores, oldest first."""
    found = upgrades.list_external_upgrades(session, decode_cursor(cursor), limit + 1)
    views = [_view_of(details) for details in describe_external_upgrades(session, found)]
    return page_of(views, [upgrade.id for upgrade in found], limit)


@router.get("/external-upgrades/{external_id}", responses=refusals(UnknownExternalUpgrade))
def get_external_upgrade(external_id: IdPath, session: SessionDependency) -> ExternalUpgradeView:
    """Return an upgrade with its progress, counted from rows."""
    return _view(session, upgrades.get_external_upgrade(session, external_id))


@router.get(
    "/external-upgrades/{external_id}/events",
    response_class=EventSourceResponse,
    responses=refusals(UnknownExternalUpgrade, TooManyStreams),
)
async def stream_external_events(
    external_id: Annotated[int, Depends(_known)],
    parts: PartsDependency,
    stream: EventStream,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the upgrade's changes of state (`state`, each with an id, from after `Last-Event-ID` on) and its progress
    (`progress`, whenever it changed); ends when the upgrade has ended."""
    look = partial(_look, parts, external_id)
    async for event in stream_news(stream, ("external", external_id), look, last_event_id):
        yield event


def _look(parts: Parts, upgrade_id: int) -> ExternalNews:
    with parts.database.session_scope(snapshot=True) as session:
        return news_of(session, upgrade_id)


@router.patch("/external-upgrades/{external_id}", responses=refusals(UnknownExternalUpgrade, ExternalUpgradeEnded))
def set_external_speed(external_id: IdPath, new: NewSpeed, session: SessionDependency) -> ExternalUpgradeView:
    """Throttle an open upgrade, from each worker's next range on; 0 stops it."""
    return _view(session, upgrades.set_speed(session, external_id, new.speed))


@router.post("/external-upgrades/{external_id}/pause", responses=refusals(UnknownExternalUpgrade, IllegalTransition))
def pause_external_upgrade(external_id: IdPath, session: SessionDependency) -> ExternalUpgradeView:
    """Pause; answered when nothing of it is in flight."""
    return _view(session, upgrades.change_state(session, external_id, ExternalAction.PAUSE))


@router.post("/external-upgrades/{external_id}/resume", responses=refusals(UnknownExternalUpgrade, IllegalTransition))
def resume_external_upgrade(external_id: IdPath, session: SessionDependency) -> ExternalUpgradeView:
    """Go on where the pause was."""
    return _view(session, upgrades.change_state(session, external_id, ExternalAction.RESUME))


@router.post("/external-upgrades/{external_id}/retry", responses=refusals(UnknownExternalUpgrade, IllegalTransition))
def retry_external_upgrade(external_id: IdPath, session: SessionDependency) -> ExternalUpgradeView:
    """Go on after a failure; what is done is kept."""
    return _view(session, upgrades.retry_external_upgrade(session, external_id))


@router.post("/external-upgrades/{external_id}/cancel", responses=refusals(UnknownExternalUpgrade, IllegalTransition))
def cancel_external_upgrade(external_id: IdPath, session: SessionDependency) -> ExternalUpgradeView:
    """Give up an upgrade that is not live; a worker removes its new side."""
    return _view(session, actions.cancel(session, external_id))


@router.post(
    "/external-upgrades/{external_id}/cutover",
    status_code=202,
    responses=refusals(UnknownExternalUpgrade, IllegalTransition, GatesHold),
)
def cut_over_external(
    external_id: IdPath, session: SessionDependency, new: NewCutover | None = None
) -> ExternalUpgradeView:
    """Have a worker switch the store of a ready upgrade, after what was written was brought along; `state` says when
    that is done. 409 names the gates that failed; it goes live past them with `override` alone."""
    override = new.override.reason if new and new.override else None
    if override is not None:
        require("override", "a cutover past gates that failed")
    return _view(session, reports.request_cutover(session, external_id, override))


@router.post(
    "/external-upgrades/{external_id}/rollback",
    responses=refusals(UnknownExternalUpgrade, IllegalTransition, *_OF_STORES),
)
def roll_back_external(external_id: IdPath, parts: PartsDependency, accept_loss: bool = False) -> ExternalUpgradeView:
    """Let the store's searches see the old side again; a worker removes the new one. 422 says how many rows were
    written since the switch, where the store knows; with `accept_loss=true` they are left without an embedding."""
    return _done(parts, lambda session: actions.roll_back(session, parts.stores, external_id, accept_loss=accept_loss))


@router.post(
    "/external-upgrades/{external_id}/finalize",
    responses=refusals(UnknownExternalUpgrade, IllegalTransition, SwitchedElsewhere, *_OF_STORES),
)
def finalize_external(external_id: IdPath, parts: PartsDependency) -> ExternalUpgradeView:
    """End a live upgrade for good: a worker removes the old side; from then on there is no rollback."""
    return _done(parts, lambda session: actions.finalize(session, parts.stores, external_id))
