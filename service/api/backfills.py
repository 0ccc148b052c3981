"""`/v1/galleries/{g}/backfills` and `/v1/backfills/{id}`."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field, model_validator

from service.api.bodies import FILE, body_of, form_of
from service.api.dependencies import IdPath, NamePath, Parts, PartsDependency, Session, SessionDependency
from service.api.event_streams import EventStream, TooManyStreams, stream_news
from service.api.images import OF_IMAGES, image_uploads
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.speed import NewSpeed, Speed
from service.api.upgrade_views import PhaseView
from service.api.uploads import UploadForm
from service.domain.backfill import backfills
from service.domain.backfill.backfills import BackfillEnded, UnknownBackfill
from service.domain.backfill.clients import GenerationsChange, NoImageTaken, OtherSource, lease_items, take_images
from service.domain.backfill.planning import (
    BackfillOpen,
    Budget,
    NoCandidate,
    NoCurve,
    NothingToBackfill,
    OrderUnknown,
    Outline,
    ReadsNoImages,
    WantedBackfill,
    WantedOrder,
    outline,
    plan_backfill,
)
from service.domain.backfill.progress import BackfillDetails, BackfillNews, describe_backfills, list_refused, news_of
from service.domain.backfill.thumbnails import ThumbnailsUnproven
from service.domain.backfill.work import NotTakingImages
from service.domain.backfill_state import BackfillAction
from service.domain.gallery.galleries import UnknownGallery
from service.domain.state_table import IllegalTransition
from service.networks.encoders import VersionWithoutNetworks
from service.tables import Backfill, BackfillSource

router = APIRouter(tags=["backfills"], route_class=JsonRoute)


class BudgetView(Body):
    """At most one of: how many items; a share of all that are worth it; seconds of workers' time."""

    items: Annotated[int, Field(ge=1, le=2**53)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "BudgetView":
        if sum(value is not None for value in (self.items, self.share, self.seconds)) > 1:
            raise ValueError("a budget is items, share or seconds, one of them")
        return self


class NewBackfill(Body):
    """`generation` is the candidate of an upgrade that is ready (`next`) or the one that answers (`active`). `source`
    says where images come from: `uri`, the items' own; `client`, which leases items and sends their images;
    `thumbnails`, where the references show that these beat h. `order` `auto` takes the one whose curve on the
    references is best. `stop` `knee` ends where more of it is hardly worth its time. `seed` draws the random order.
    With `dry_run` nothing is written: the answer says what a backfill would be worth."""

    generation: Literal["next", "active"]
    source: BackfillSource
    order: WantedOrder = "auto"
    budget: BudgetView = Field(default_factory=BudgetView)
    stop: Literal["knee"] | None = None
    speed: Speed = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dry_run: bool = False


class CurvePointView(BaseModel):
    """What answers gain when this share is done, with the bounds of 95 % confidence, and what it takes one worker."""

    share: float
    gain: float
    low: float
    high: float
    seconds: float


class SimulationView(BaseModel):
    """What a backfill would be worth, played through on the references: `measure` is `cmc_at_1` or `overlap_at_10`
    (with a gallery that was encoded anew), null with too few references; `orders` are the areas under each order's
    curve, `curve` and `knee` those of the best one."""

    references: int
    measure: str | None
    orders: dict[str, float]
    curve: list[CurvePointView]
    knee: float | None
    seconds_per_item: float
    reason: str


class BackfillDryRunView(SimulationView):
    """`candidates` are worth a backfill, `items` of them would be done, in this `order`."""

    generation: int
    order: str
    candidates: int
    items: int


class OutcomesView(BaseModel):
    """Of the items that are done: `superseded` ones were written again or deleted before their turn came."""

    backfilled: int
    superseded: int
    refused: int


class BackfillView(BaseModel):
    id: int
    gallery: str
    generation: int
    model_version: str
    state: str
    source: str
    order: str
    candidates: int
    items: int
    budget_seconds: float | None
    spent_seconds: float
    speed: float
    progress: dict[str, PhaseView]
    outcomes: OutcomesView
    simulation: SimulationView
    error: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class RefusedItemView(BaseModel):
    id: str
    reason: str


class LeaseView(BaseModel):
    """Whose images are wanted, until when, and how many items are `left`, those that are leased to others included."""

    ids: list[str]
    expires_at: datetime | None
    left: int


class BackfillResultView(BaseModel):
    id: str
    status: Literal["backfilled", "refused", "skipped"]
    error: str | None


class BackfillImagesAnswer(BaseModel):
    results: list[BackfillResultView]


_FORM = body_of(
    form_of(
        {
            "files": {"type": "array", "items": FILE},
            "items": {"type": "string", "description": "JSON list of {id?}, one per file in file order"},
        },
        required=["files"],
    )
)


def _known_backfill(backfill_id: IdPath, session: SessionDependency) -> int:
    return backfills.get_backfill(session, backfill_id).id


def _view(session: Session, backfill: Backfill) -> BackfillView:
    (details,) = describe_backfills(session, [backfill])
    return _view_of(details)


def _view_of(details: BackfillDetails) -> BackfillView:
    backfill = details.backfill
    return BackfillView(
        id=backfill.id,
        gallery=details.gallery,
        generation=backfill.generation_id,
        model_version=details.model_version,
        state=backfill.state,
        source=backfill.source,
        order=backfill.order,
        candidates=backfill.candidates,
        items=backfill.items,
        budget_seconds=backfill.seconds,
        spent_seconds=backfill.spent_seconds,
        speed=backfill.speed,
        progress={name: PhaseView(**asdict(phase)) for name, phase in details.progress.items()},
        outcomes=OutcomesView(**details.outcomes),
        simulation=SimulationView(**backfill.simulation),
        error=backfill.error,
        created_at=backfill.created_at,
        updated_at=backfill.updated_at,
        finished_at=backfill.finished_at,
    )


@router.post(
    "/galleries/{name}/backfills",
    status_code=202,
    responses=refusals(
        UnknownGallery,
        NoCandidate,
        BackfillOpen,
        NothingToBackfill,
        NoCurve,
        OrderUnknown,
        ReadsNoImages,
        ThumbnailsUnproven,
        VersionWithoutNetworks,
    )
    | {200: {"model": BackfillDryRunView}},
)
def begin_backfill(
    name: NamePath, new: NewBackfill, parts: PartsDependency, response: Response
) -> BackfillView | BackfillDryRunView:
    """Encode items again from pixels whose embeddings h made, while the gallery goes on answering and taking writes."""
    wanted = WantedBackfill(
        name,
        new.generation,
        new.source,
        new.order,
        Budget(new.budget.items, new.budget.share, new.budget.seconds),
        new.stop == "knee",
        new.speed,
        new.seed,
    )
    if new.dry_run:
        response.status_code = 200
        return _dry_run_view(outline(parts.writer, wanted))
    backfill = plan_backfill(parts.writer, wanted)
    response.headers["Location"] = f"/v1/backfills/{backfill.id}"
    with parts.database.session_scope() as session:
        return _view(session, backfill)


def _dry_run_view(found: Outline) -> BackfillDryRunView:
    shown: dict[str, Any] = {
        **found.simulation.to_json(),
        "generation": found.generation.id,
        "order": found.order,
        "candidates": found.candidates.items,
        "items": found.items,
    }
    return BackfillDryRunView(**shown)


@router.get("/galleries/{name}/backfills", responses=refusals(UnknownGallery))
def list_backfills(
    name: NamePath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[BackfillView]:
    """Return a gallery's backfills, oldest first."""
    found = backfills.list_backfills(session, name, decode_cursor(cursor), limit + 1)
    views = [_view_of(details) for details in describe_backfills(session, found)]
    return page_of(views, [backfill.id for backfill in found], limit)


@router.get("/backfills/{backfill_id}", responses=refusals(UnknownBackfill))
def get_backfill(backfill_id: IdPath, session: SessionDependency) -> BackfillView:
    """Return a backfill with its progress, counted from rows."""
    return _view(session, backfills.get_backfill(session, backfill_id))


@router.get("/backfills/{backfill_id}/refused", responses=refusals(UnknownBackfill))
def list_refused_items(
    backfill_id: IdPath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[RefusedItemView]:
    """Return the items whose images were refused, with the reasons, in the backfill's order."""
    found = list_refused(session, backfill_id, decode_cursor(cursor), limit + 1)
    views = [RefusedItemView(id=item.id, reason=item.reason) for item in found]
    return page_of(views, [item.position for item in found], limit)


@router.get(
    "/backfills/{backfill_id}/events",
    response_class=EventSourceResponse,
    responses=refusals(UnknownBackfill, TooManyStreams),
)
async def stream_events(
    backfill_id: Annotated[int, Depends(_known_backfill)],
    parts: PartsDependency,
    stream: EventStream,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the backfill's changes of state (`state`, each with an id, from after `Last-Event-ID` on) and its progress
    (`progress`, whenever it changed); ends when the backfill has ended."""
    look = partial(_look, parts, backfill_id)
    async for event in stream_news(stream, ("backfill", backfill_id), look, last_event_id):
        yield event


def _look(parts: Parts, backfill_id: int) -> BackfillNews:
    with parts.database.session_scope(snapshot=True) as session:
        return news_of(session, backfill_id)


@router.patch("/backfills/{backfill_id}", responses=refusals(UnknownBackfill, BackfillEnded))
def set_speed(backfill_id: IdPath, new: NewSpeed, session: SessionDependency) -> BackfillView:
    """Throttle an open backfill, from each worker's next items on; 0 stops it."""
    return _view(session, backfills.set_speed(session, backfill_id, new.speed))


@router.post("/backfills/{backfill_id}/pause", responses=refusals(UnknownBackfill, IllegalTransition))
def pause_backfill(backfill_id: IdPath, session: SessionDependency) -> BackfillView:
    """Pause; answered when nothing of it is in flight."""
    return _view(session, backfills.pause_backfill(session, backfill_id))


@router.post("/backfills/{backfill_id}/resume", responses=refusals(UnknownBackfill, IllegalTransition))
def resume_backfill(backfill_id: IdPath, session: SessionDependency) -> BackfillView:
    """Go on where the pause was."""
    return _view(session, backfills.change_state(session, backfill_id, BackfillAction.RESUME))


@router.post("/backfills/{backfill_id}/retry", responses=refusals(UnknownBackfill, IllegalTransition))
def retry_backfill(backfill_id: IdPath, session: SessionDependency) -> BackfillView:
    """Go on after a failure; what is done is kept."""
    return _view(session, backfills.retry_backfill(session, backfill_id))


@router.post("/backfills/{backfill_id}/cancel", responses=refusals(UnknownBackfill, IllegalTransition))
def cancel_backfill(backfill_id: IdPath, session: SessionDependency) -> BackfillView:
    """Give up what is not done; what is done stays, each row being the better one for its item."""
    return _view(session, backfills.cancel_backfill(session, backfill_id))


@router.post(
    "/backfills/{backfill_id}/lease",
    responses=refusals(UnknownBackfill, IllegalTransition, NotTakingImages, OtherSource),
)
def lease(
    backfill_id: IdPath,
    parts: PartsDependency,
    session: SessionDependency,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 256,
) -> LeaseView:
    """Lease items to a client that has their images; what it does not send in time comes back to others."""
    found = lease_items(session, backfill_id, limit, parts.settings.backfill_lease_seconds)
    return LeaseView(ids=found.ids, expires_at=found.expires_at, left=found.left)


@router.post(
    "/backfills/{backfill_id}/images",
    openapi_extra=_FORM,
    responses=refusals(
        UnknownBackfill, IllegalTransition, NotTakingImages, OtherSource, NoImageTaken, GenerationsChange, *OF_IMAGES
    ),
)
def post_images(backfill_id: IdPath, form: UploadForm, parts: PartsDependency) -> BackfillImagesAnswer:
    """Take images of leased items. One that cannot be read or is another item's is refused alone, and its item is not
    asked for again; 422 only if every one is."""
    uploads = image_uploads(form, parts.settings.max_image_bytes)
    parts.quotas.take_images(len(uploads))
    found = take_images(parts.writer, backfill_id, uploads)
    return BackfillImagesAnswer(results=[BackfillResultView(id=r.id, status=r.status, error=r.error) for r in found])
