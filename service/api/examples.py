"""`/v1/upgrades/{id}/report/examples`: what the newest report on an upgrade shows of it, item by item."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.api.dependencies import IdPath, SessionDependency
from service.api.items import thumbnail_url
from service.api.refusals import refusals
from service.domain.judging import reports
from service.domain.judging.examples import Example, ExampleItem, ExampleKind, FoundItem, Since, read_examples
from service.domain.judging.reports import UnknownReport
from service.domain.upgrade import upgrades
from service.domain.upgrade.progress import describe_upgrades
from service.domain.upgrade.upgrades import UnknownUpgrade

router = APIRouter(prefix="/upgrades", tags=["judging"])


class ExampleItemView(BaseModel):
    """An item as it is now. `since` the report it is the `same`, or was `changed`, so that label and image may be
    others, or is `gone`. `thumbnail_url` is null for an item without one."""

    id: str
    label: str | None
    thumbnail_url: str | None
    since: Since


class FoundItemView(ExampleItemView):
    distance: float


class ExampleView(BaseModel):
    """A query by its `item`, null where it was none, and the first five of both generations' answers, nearest first.

    The values are what it was chosen by: of flips, the rank of the first right item before and after, null beyond ten;
    of churn, the overlap@10 (after); of hubs, in how many answers the item was, whose answers are the items whose
    images found it; of uncertain ones, the squared error that h expects (after).
    """

    item: ExampleItemView | None
    value_before: float | None
    value_after: float | None
    before: list[FoundItemView]
    after: list[FoundItemView]


class ExamplesView(BaseModel):
    """Of which `report`, and the examples, the most telling first."""

    report: int
    kind: ExampleKind
    examples: list[ExampleView]


@router.get("/{upgrade_id}/report/examples", responses=refusals(UnknownUpgrade, UnknownReport))
def get_examples(
    upgrade_id: IdPath,
    session: SessionDependency,
    kind: ExampleKind,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> ExamplesView:
    """Return items for which an upgrade changes most, with what both generations answer."""
    (details,) = describe_upgrades(session, [upgrades.get_upgrade(session, upgrade_id)])
    report = reports.get_report(session, upgrade_id)
    found = read_examples(session, report, [kind], limit)[kind]
    views = [_view(details.gallery, example) for example in found]
    return ExamplesView(report=report.number, kind=kind, examples=views)


def _view(gallery: str, example: Example) -> ExampleView:
    return ExampleView(
        item=_item_view(gallery, example.item) if example.item else None,
        value_before=example.value_before,
        value_after=example.value_after,
        before=[_found_view(gallery, found) for found in example.before],
        after=[_found_view(gallery, found) for found in example.after],
    )


def _found_view(gallery: str, found: FoundItem) -> FoundItemView:
    return FoundItemView(**_item_view(gallery, found.item).model_dump(), distance=found.distance)


def _item_view(gallery: str, item: ExampleItem) -> ExampleItemView:
    url = thumbnail_url(gallery, item.id) if item.has_thumbnail else None
    return ExampleItemView(id=item.id, label=item.label, thumbnail_url=url, since=item.since)
