"""Pages of galleries: all of them, one with its items and what a picture finds in it, and one item."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BeforeValidator

from service.api.console.comparisons import Comparison, compare
from service.api.console.rendering import PageRoute, render
from service.api.dependencies import NamePath, Parts, PartsDependency, Session, SessionDependency
from service.api.pagination import Cursor, decode_cursor, page_of
from service.api.search import ImageQuery, image_query
from service.domain.gallery import galleries, items
from service.domain.gallery.galleries import GalleryDetails
from service.domain.registry.versions import list_versions
from service.domain.search import answers
from service.domain.search.rates import SearchRate
from service.domain.search.selections import list_selected
from service.domain.upgrade.progress import UpgradeDetails, describe_upgrades
from service.domain.upgrade.upgrades import newest_upgrades
from service.domain.upgrade_state import OPEN
from service.index.kinds import bytes_per_row
from service.tables import Item
from service.vectors.rows import Origin

router = APIRouter(route_class=PageRoute)

_GALLERIES_SHOWN = 100
_ITEMS_SHOWN = 60
_NEIGHBORS = 12
_MOST_VERSIONS = 1_000
Text = Annotated[str, Query(max_length=4_096)]


@dataclass(frozen=True)
class ItemFilter:
    """What items are to be, each part of it only where it is given: `key` and `value` are of metadata, and `uncertain`
    is the least error that h expects."""

    id: str
    label: str
    origin: str
    key: str
    value: str
    uncertain: float | None

    @property
    def condition(self) -> dict[str, Any]:
        """The same as a filter of searches; empty without one."""
        texts = {"id": self.id, "label": self.label, "origin": self.origin}
        condition: dict[str, Any] = {name: text for name, text in texts.items() if text}
        if self.key:
            condition[f"metadata.{self.key}"] = self.value
        if self.uncertain is not None:
            condition["uncertainty"] = {"gte": self.uncertain}
        return condition


def _wanted_items(
    id: Text = "",
    label: Text = "",
    origin: Text = "",
    key: Text = "",
    value: Text = "",
    uncertain: Annotated[float | None, BeforeValidator(lambda given: None if given == "" else given)] = None,
) -> ItemFilter:
    return ItemFilter(id, label, origin, key, value, uncertain)


@dataclass(frozen=True)
class GalleryLine:
    """A gallery with its newest upgrade. `vectors` is how many its index holds here, None until it is loaded; `rate` is
    how often it is searched here, None where it was not of late."""

    details: GalleryDetails
    vectors: int | None
    rate: SearchRate | None
    newest: UpgradeDetails | None

    @property
    def index_bytes(self) -> int | None:
        """About how much memory its index takes here."""
        kind = (self.details.generation.index_parameters or {}).get("kind", "flat")
        dim = self.details.version.embedding_dim
        return None if self.vectors is None else self.vectors * bytes_per_row(kind, dim)

    @property
    def upgrade(self) -> UpgradeDetails | None:
        """Its open upgrade."""
        return self.newest if self.newest is not None and self.newest.upgrade.state in OPEN else None


@dataclass(frozen=True)
class ItemCell:
    """An item, and whether there is a picture of it."""

    item: Item
    has_thumbnail: bool


@router.get("/")
def show_galleries(
    request: Request, session: SessionDependency, parts: PartsDependency, cursor: Cursor = None
) -> Response:
    """Show every gallery in a line."""
    found = galleries.list_galleries(session, decode_cursor(cursor), _GALLERIES_SHOWN + 1)
    page = page_of(gallery_lines(session, parts, found), [details.gallery.id for details in found], _GALLERIES_SHOWN)
    versions = list_versions(session, 0, _MOST_VERSIONS)
    return render(request, "pages/galleries.html", page=page, versions=versions)


def gallery_lines(session: Session, parts: Parts, found: Sequence[GalleryDetails]) -> list[GalleryLine]:
    """Return the galleries' lines, by as many queries as for one."""
    sizes = parts.replicas.sizes()
    newest = newest_upgrades(session, [details.gallery.id for details in found])
    upgrades = {each.upgrade.gallery_id: each for each in describe_upgrades(session, list(newest.values()))}
    ids = [details.gallery.id for details in found]
    return [
        GalleryLine(details, sizes.get(id_), parts.search.rates.of(id_), upgrades.get(id_))
        for id_, details in zip(ids, found, strict=True)
    ]


@router.get("/console/galleries/{name}")
def show_gallery(
    request: Request,
    name: NamePath,
    session: SessionDependency,
    parts: PartsDependency,
    wanted: Annotated[ItemFilter, Depends(_wanted_items)],
    cursor: Cursor = None,
) -> Response:
    """Show a gallery with a page of its items, those that pass a filter if there is one."""
    (line,) = gallery_lines(session, parts, [galleries.describe_gallery(session, galleries.get_gallery(session, name))])
    condition = wanted.condition
    after, at_most = decode_cursor(cursor), _ITEMS_SHOWN + 1
    found = (
        list_selected(session, name, condition, after, at_most)
        if condition
        else items.list_items(session, name, after, at_most)
    )
    ids = [item.id for item in found]
    pictured = items.having_thumbnails(session, ids)
    page = page_of([ItemCell(item, item.id in pictured) for item in found], ids, _ITEMS_SHOWN)
    return render(
        request,
        "pages/gallery.html",
        line=line,
        page=page,
        given=asdict(wanted),
        condition=condition,
        origins=[each.label for each in Origin],
        has_candidate=parts.replicas.loaded_next(line.details.gallery.id) is not None,
    )


@router.get("/console/galleries/{name}/item")
def show_item(request: Request, name: NamePath, id: Text, parts: PartsDependency) -> Response:
    """Show everything that is known of an item, and its neighbours."""
    with parts.database.session_scope() as session:
        details = galleries.describe_gallery(session, galleries.get_gallery(session, name))
        item = items.get_item(session, name, id)
        has_thumbnail = bool(items.having_thumbnails(session, [item.id]))
        row = items.provenance_of(session, name, [item.id]).get(item.id)
        (line,) = gallery_lines(session, parts, [details])
    return render(
        request,
        "pages/item.html",
        line=line,
        item=item,
        row=row,
        has_thumbnail=has_thumbnail,
        found=compare_item(parts, line.details, item.external_id),
    )


def compare_item(parts: Parts, details: GalleryDetails, external_id: str) -> Comparison:
    """Return an item's neighbours, in the candidate too where one is loaded."""
    name = details.gallery.name

    def ask(generation: answers.Which) -> answers.Answer:
        return parts.search.by_items(
            name, [external_id], answers.Query(_NEIGHBORS, None, generation), exclude_self=True
        )

    return compare(ask, "active", _candidate(parts, details.gallery.id))


@router.post("/console/galleries/{name}/search")
def search(
    request: Request,
    name: NamePath,
    image: Annotated[ImageQuery, Depends(image_query, scope="function")],
    parts: PartsDependency,
) -> Response:
    """Show what a picture finds, in the candidate too where one is loaded: a part of a gallery's page."""
    with parts.database.session_scope() as session:
        gallery = galleries.get_gallery(session, name)
        (line,) = gallery_lines(session, parts, [galleries.describe_gallery(session, gallery)])

    def ask(generation: answers.Which) -> answers.Answer:
        return parts.search.by_image(name, image.data, answers.Query(_NEIGHBORS, None, generation))

    found = compare(ask, "active", _candidate(parts, gallery.id))
    return render(request, "pages/found.html", line=line, found=found)


def _candidate(parts: Parts, gallery_id: int) -> answers.Which | None:
    """Return how to ask an open upgrade's candidate, where it is loaded."""
    return None if parts.replicas.loaded_next(gallery_id) is None else "next"
