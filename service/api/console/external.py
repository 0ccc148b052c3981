"""Pages of galleries that live in other stores: their upgrades, what one would take, and one as it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.console.rendering import PageRoute, render
from service.api.console.squares import work_of
from service.api.dependencies import IdPath, NamePath, PartsDependency, SessionDependency
from service.api.report_page import render_external_report
from service.domain.consequences import counted
from service.domain.external import evidence, passes, planning, reports, upgrades
from service.domain.external.consequences import consequences_of
from service.domain.external.planning import WantedExternal
from service.domain.external.progress import ExternalDetails, describe_external_upgrades
from service.domain.external_state import OPEN, ExternalState
from service.domain.phases import Phase
from service.domain.registry.versions import list_versions
from service.errors import GalleryError
from service.tables import ExternalBatch, ExternalEvent

router = APIRouter(route_class=PageRoute)

_UPGRADES_SHOWN = 50
_RANGES_SHOWN = 1_000
_MOST_VERSIONS = 1_000
_KEY_LENGTH = 60  # of a key that stands for the end of a range
_LINE = (
    ExternalState.PLANNED,
    ExternalState.TRANSFORMING,
    ExternalState.VERIFYING,
    ExternalState.READY,
    ExternalState.LIVE,
)
_UNDER_WAY = {"transforming": ExternalState.TRANSFORMING, "verifying": ExternalState.VERIFYING}
_ENDS = (ExternalState.FINALIZED, ExternalState.ROLLED_BACK, ExternalState.CANCELLED)


@dataclass(frozen=True)
class Step:
    """A state on an upgrade's way: when it was first reached, None before that, and how long it took until the next
    one was. `phase` is how far it is, of the one that ranges are gone over for now."""

    state: ExternalState
    at: datetime | None
    seconds: float | None
    phase: Phase | None


@dataclass(frozen=True)
class LeftRange:
    """A range that is not done, and why it failed, if it did."""

    batch: ExternalBatch
    words: str
    fault: str | None


@router.get("/console/external-upgrades")
def show_external_upgrades(
    request: Request,
    session: SessionDependency,
    parts: PartsDependency,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """Show upgrades of other stores, newest first, and the stores that there are."""
    found = upgrades.latest_external_upgrades(session, before, _UPGRADES_SHOWN + 1)
    shown = describe_external_upgrades(session, found[:_UPGRADES_SHOWN])
    return render(
        request,
        "pages/external_upgrades.html",
        upgrades=list(reversed(shown)),
        has_more=len(found) > _UPGRADES_SHOWN,
        stores=parts.stores.names(),
    )


@router.get("/console/stores/{name}")
def show_store(
    request: Request,
    name: NamePath,
    parts: PartsDependency,
    from_version: str = "",
    to_version: str = "",
    transformation: str = "",
) -> Response:
    """Show what a store says of itself, and what an upgrade of it would take."""
    described, found, refusal = None, None, None
    with parts.database.session_scope() as session:
        versions = [version.name for version in list_versions(session, 0, _MOST_VERSIONS)]
        try:
            if from_version and to_version:
                chosen = int(transformation) if transformation.isdecimal() else None
                wanted = WantedExternal(name, from_version, to_version, chosen)
                found = planning.outline(session, parts.stores, parts.settings, wanted)
                described = found.description
            else:
                with parts.stores.opened(name) as store:
                    described = store.describe()
        except GalleryError as error:
            if name not in parts.stores.names():
                raise
            refusal = error.message
    return render(
        request,
        "pages/store.html",
        store=name,
        described=described,
        versions=versions,
        given={"from_version": from_version, "to_version": to_version, "transformation": transformation},
        found=found,
        refusal=refusal,
    )


@router.get("/console/external-upgrades/{external_id}")
def show_external_upgrade(
    request: Request, external_id: IdPath, session: SessionDependency, parts: PartsDependency
) -> Response:
    """Show an upgrade of another store as it is now, and what each action would do."""
    upgrade = upgrades.get_external_upgrade(session, external_id)
    (details,) = describe_external_upgrades(session, [upgrade])
    ranges = sorted(passes.list_ranges(session, upgrade, _RANGES_SHOWN), key=lambda batch: batch.number)
    happened = upgrades.events_of(session, external_id)
    report = reports.newest_report(session, external_id)
    given, drawn = evidence.count_references(session, upgrade)
    return render(
        request,
        "pages/external_upgrade.html",
        details=details,
        consequences=consequences_of(session, details),
        steps=timeline(details, happened),
        ranges=ranges,
        work=work_of(ranges, _range_words),
        left=[LeftRange(each, _range_words(each), _fault(each)) for each in ranges if each.done_at is None],
        counts=passes.count_ranges(session, upgrade),
        events=happened,
        report=None if report is None else render_external_report(details, report),
        given=given,
        drawn=drawn,
        pass_seconds=parts.settings.external_pass_every_seconds,
        is_open=upgrade.state in OPEN,
        is_running=upgrade.state in OPEN | {ExternalState.LIVE},
        states=ExternalState,
    )


def timeline(details: ExternalDetails, happened: Sequence[ExternalEvent]) -> list[Step]:
    """Return the states on an upgrade's way, in order; that which it ended in where it has, else finalized."""
    reached = {event.state: event.at for event in reversed(happened)}
    ended = [state for state in _ENDS if state in reached] or [ExternalState.FINALIZED]
    line = [*_LINE, *ended]
    ((name, phase),) = details.progress.items()
    resting = (
        details.upgrade.resume_state if details.upgrade.state in (ExternalState.PAUSED, ExternalState.FAILED) else None
    )
    under_way = _UNDER_WAY.get(name, resting or details.upgrade.state)
    times = [reached.get(state) for state in line]
    took = [
        None if began is None or done is None else (done - began).total_seconds()
        for began, done in pairwise([*times, None])
    ]
    return [
        Step(state, at, seconds, phase if state is under_way and phase.total else None)
        for state, at, seconds in zip(line, times, took, strict=True)
    ]


def _range_words(batch: ExternalBatch) -> str:
    after, upto = (None if key is None else key[:_KEY_LENGTH] for key in (batch.after, batch.upto))
    if after is None and upto is None:
        return f"range {batch.number}, all keys"
    ends = ([] if after is None else [f"after {after}"]) + ([] if upto is None else [f"up to {upto}"])
    return f"range {batch.number}, keys {' '.join(ends)}"


def _fault(batch: ExternalBatch) -> str | None:
    if batch.refused is None:
        return batch.error
    named = "; ".join(f"{each.key}: its {each.reason}" for each in batch.refused.first[:3])
    return f"{counted(batch.refused.count, 'row')} cannot be upgraded, first {named}"
