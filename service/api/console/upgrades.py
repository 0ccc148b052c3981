"""Pages of upgrades: all of them, what one would take, one as it runs, its report, and what it changes in answers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.console.charts import curve_chart
from service.api.console.comparisons import Comparison, compare, compare_example
from service.api.console.rendering import PageRoute, render
from service.api.console.squares import work_of
from service.api.dependencies import IdPath, NamePath, Parts, PartsDependency, Session, SessionDependency
from service.api.report_page import EXAMPLES_SHOWN, render_report
from service.domain.backfill.planning import Outline, WantedBackfill, WantedGeneration, outline
from service.domain.gallery import galleries, items
from service.domain.judging import blind_votes, reports
from service.domain.judging.examples import Example, ExampleKind, Examples, Since, read_examples, read_thumbnails
from service.domain.registry.transformations import list_transformations
from service.domain.registry.versions import list_versions
from service.domain.search import answers
from service.domain.upgrade import upgrades
from service.domain.upgrade.consequences import consequences_of
from service.domain.upgrade.dry_run import DryRun
from service.domain.upgrade.planning import WantedUpgrade
from service.domain.upgrade.progress import UpgradeDetails, describe_upgrades
from service.domain.upgrade_state import OPEN, State
from service.errors import Conflict, GalleryError, NotFound
from service.tables import BackfillSource, UpgradeBatch

router = APIRouter(route_class=PageRoute)

_UPGRADES_SHOWN = 50
_BATCHES_SHOWN = 1_000
_MOST_VERSIONS = 1_000
_EXAMPLES = 50
_NEIGHBORS = 8
_ASKED_NOW = "Asked now, by the item’s own embedding in each generation."
Kind = ExampleKind | Literal["items"]


class NothingToCompare(NotFound):
    """There is no query of this kind."""


@dataclass(frozen=True)
class Asked:
    """A query, and what both generations answer; `count` of them are of its kind. `told` says in a sentence or two
    where the answers are from; `may_vote`, whether a blind vote on it counts."""

    kind: Kind
    at: int
    count: int
    id: str | None
    label: str | None
    has_thumbnail: bool
    found: Comparison
    told: str
    may_vote: bool


@router.get("/console/upgrades")
def show_upgrades(
    request: Request, session: SessionDependency, before: Annotated[int | None, Query(ge=1, lt=2**63)] = None
) -> Response:
    """Show upgrades of all galleries, newest first."""
    found = upgrades.latest_upgrades(session, before, _UPGRADES_SHOWN + 1)
    shown = sorted(
        describe_upgrades(session, found[:_UPGRADES_SHOWN]), key=lambda details: details.upgrade.id, reverse=True
    )
    return render(request, "pages/upgrades.html", upgrades=shown, has_more=len(found) > _UPGRADES_SHOWN)


@router.get("/console/galleries/{name}/upgrade")
def show_dry_run(
    request: Request,
    name: NamePath,
    parts: PartsDependency,
    to_version: str = "",
    transformation: str = "",
) -> Response:
    """Ask what a gallery is to be brought to, and show what that would take."""
    with parts.database.session_scope() as session:
        details = galleries.describe_gallery(session, galleries.get_gallery(session, name))
        versions = list_versions(session, 0, _MOST_VERSIONS)
        transformations = list_transformations(session, 0, _MOST_VERSIONS)
    found: DryRun | None = None
    refusal: str | None = None
    if to_version:
        chosen = int(transformation) if transformation.isdecimal() else None
        wanted = WantedUpgrade(name, to_version, chosen, dry_run=True)
        try:
            planned = parts.upgrade_actions.plan(wanted)
            assert isinstance(planned, DryRun)
            found = planned
        except GalleryError as error:
            refusal = error.message
    return render(
        request,
        "pages/dry_run.html",
        details=details,
        versions=[version for version in versions if version.name != details.version.name],
        transformations=transformations,
        to_version=to_version,
        transformation=transformation,
        found=found,
        refusal=refusal,
    )


@router.get("/console/upgrades/{upgrade_id}")
def show_upgrade(request: Request, upgrade_id: IdPath, session: SessionDependency) -> Response:
    """Show an upgrade as it is now, and what each action would do."""
    details = _details(session, upgrade_id)
    batches = sorted(upgrades.list_batches(session, upgrade_id, _BATCHES_SHOWN), key=lambda batch: batch.id)
    return render(
        request,
        "pages/upgrade.html",
        details=details,
        consequences=consequences_of(session, details),
        batches=batches,
        work=work_of(batches, _batch_words),
        events=upgrades.events_of(session, upgrade_id),
        is_open=details.upgrade.state in OPEN,
        is_running=details.upgrade.state in OPEN | {State.LIVE},
        states=State,
    )


@router.get("/console/upgrades/{upgrade_id}/report")
def show_report(request: Request, upgrade_id: IdPath, session: SessionDependency) -> Response:
    """Show the newest report on an upgrade."""
    details = _details(session, upgrade_id)
    report = reports.newest_report(session, upgrade_id)
    if report is None:
        return render(request, "pages/no_report.html", details=details)
    examples = read_examples(session, report, ExampleKind, EXAMPLES_SHOWN)
    body = render_report(details, report, examples, read_thumbnails(session, examples), is_page=False)
    return render(
        request,
        "pages/report.html",
        details=details,
        report=report,
        body=body,
        tally=blind_votes.tally(session, upgrade_id),
        is_open=details.upgrade.state in OPEN,
    )


@router.get("/console/upgrades/{upgrade_id}/backfill")
def show_backfill(
    request: Request, upgrade_id: IdPath, parts: PartsDependency, source: BackfillSource = "uri"
) -> Response:
    """Show what it would be worth to encode items of an upgrade again from their images."""
    with parts.database.session_scope() as session:
        details = _details(session, upgrade_id)
    generation: WantedGeneration = "next" if details.upgrade.state in OPEN else "active"
    found: Outline | None = None
    refusal: str | None = None
    try:
        found = outline(parts.writer, WantedBackfill(details.gallery, generation, source))
    except Conflict as error:
        refusal = error.message
    return render(
        request,
        "pages/backfill.html",
        details=details,
        generation=generation,
        source=source,
        found=found,
        refusal=refusal,
        chart=None if found is None else curve_chart(found.simulation.curve),
    )


@router.get("/console/upgrades/{upgrade_id}/compare")
def show_comparison(
    request: Request,
    upgrade_id: IdPath,
    parts: PartsDependency,
    kind: Kind | None = None,
    at: Annotated[int, Query(ge=0, lt=_EXAMPLES)] = 0,
    blind: bool = False,
) -> Response:
    """Show one query's answers before and after, and the way to the next query."""
    with parts.database.session_scope() as session:
        details = _details(session, upgrade_id)
        report = reports.newest_report(session, upgrade_id)
        kept: Examples = {} if report is None else read_examples(session, report, ExampleKind, _EXAMPLES)
        tally = blind_votes.tally(session, upgrade_id)
    counts: dict[Kind, int] = {each: len(found) for each, found in kept.items() if found}
    kind = kind or next(iter(counts), "items")
    asked = _example(kind, kept, at) if isinstance(kind, ExampleKind) else _ask_item(parts, details, at)
    next_is_left = blind and asked.id is not None and blind_votes.next_is_left(upgrade_id, asked.id)
    return render(
        request,
        "pages/compare.html",
        details=details,
        counts=counts,
        asked=asked,
        found=asked.found.swapped if next_is_left else asked.found,
        blind=blind,
        tally=tally,
        is_open=details.upgrade.state in OPEN,
    )


def _batch_words(batch: UpgradeBatch) -> str:
    return f"{batch.phase.replace('_', ' ')}, items {batch.first_item_id} to {batch.last_item_id}"


def _details(session: Session, upgrade_id: int) -> UpgradeDetails:
    (details,) = describe_upgrades(session, [upgrades.get_upgrade(session, upgrade_id)])
    return details


def _ask_item(parts: Parts, details: UpgradeDetails, at: int) -> Asked:
    """Ask by one of the gallery's first items."""
    with parts.database.session_scope() as session:
        first = items.list_items(session, details.gallery, 0, _EXAMPLES)
        if at >= len(first):
            raise NothingToCompare("The gallery has no such item.")
        item = first[at]
        has_thumbnail = bool(items.having_thumbnails(session, [item.id]))
    found = _ask(parts, details, item.external_id)
    return Asked("items", at, len(first), item.external_id, item.label, has_thumbnail, found, _ASKED_NOW, may_vote=True)


def _example(kind: ExampleKind, kept: Examples, at: int) -> Asked:
    """Return what the report keeps of an example. To ask by its item now would be another query: by the item's own
    embedding, which h made in one of the generations."""
    examples = kept.get(kind, [])
    if at >= len(examples):
        raise NothingToCompare("The newest report has no such example.")
    example, item, found = examples[at], examples[at].item, compare_example(examples[at])
    told = _told(kind, example, max(len(example.before), len(example.after)))
    if item is None:
        return Asked(kind, at, len(examples), None, None, False, found, told, may_vote=False)
    may_vote = kind is not ExampleKind.HUBS and item.since is not Since.GONE
    return Asked(kind, at, len(examples), item.id, item.label, item.has_thumbnail, found, told, may_vote)


def _told(kind: ExampleKind, example: Example, shown: int) -> str:
    if kind is ExampleKind.HUBS:
        return f"Items whose queries found it, at most {shown}, as the report keeps them: too many answers have it."
    sentence = f"The first {shown} of each answer, as the report keeps them: asked as each model sees the query."
    if kind in (ExampleKind.NEGATIVE_FLIPS, ExampleKind.POSITIVE_FLIPS):
        before, after = (_rank(value) for value in (example.value_before, example.value_after))
        sentence += f" The first right item is {before} before, and {after} after."
    gone = {each.item.key for each in (*example.before, *example.after) if each.item.since is not Since.SAME}
    if gone:
        sentence += f" {len(gone)} of the items shown {'was' if len(gone) == 1 else 'were'} changed or deleted since."
    return sentence


def _rank(value: float | None) -> str:
    return "beyond the tenth" if value is None else f"number {value:.0f}"


def _ask(parts: Parts, details: UpgradeDetails, external_id: str) -> Comparison:
    """Return an item's neighbours before and after the upgrade; where not both generations are loaded, those that the
    gallery answers with now."""
    upgrade = details.upgrade

    def ask(generation: answers.Which) -> answers.Answer:
        query = answers.Query(_NEIGHBORS, None, generation)
        return parts.search.by_items(details.gallery, [external_id], query, exclude_self=True)

    generations = (upgrade.from_generation_id, upgrade.to_generation_id)
    if any(parts.replicas.loaded(upgrade.gallery_id, each) is None for each in generations):
        return compare(ask, "active", None)
    return compare(ask, *generations)
