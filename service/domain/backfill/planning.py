"""Planning a backfill: what refuses it, what it begins with, and giving it its items."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.audit import Act, Subject, record
from service.db import Database
from service.domain.backfill.backfills import change_state, lock_state
from service.domain.backfill.candidates import Candidates, choose_items, count_candidates
from service.domain.backfill.simulation import Simulation, simulate
from service.domain.backfill.thumbnails import least_error_of
from service.domain.backfill_state import BackfillAction, BackfillState
from service.domain.gallery.galleries import find_open_upgrade, get_gallery, lock_gallery
from service.domain.gallery.generations import StoredGeneration, get_stored_generation, gone_if_dropped
from service.domain.gallery.writes import GalleryWriter
from service.domain.upgrade_state import State
from service.errors import Conflict
from service.index.served import GenerationGone
from service.networks.encoders import Encoders, check_encodes
from service.queue import ADVANCE_BACKFILL, send_after_commit
from service.tables import Backfill, BackfillEvent, BackfillOrder, BackfillSource, Gallery

WantedGeneration = Literal["next", "active"]
WantedOrder = Literal["auto", "uncertainty", "traffic", "random"]


class NoCandidate(Conflict):
    """There is no candidate that is ready."""


class NothingToBackfill(Conflict):
    """No item is worth it, or none can be had."""


class ReadsNoImages(Conflict):
    """The operator lets the service read no images by their URIs."""


class OrderUnknown(Conflict):
    """Nothing is known by which the items could be put into the order asked for."""


class NoCurve(Conflict):
    """What the references say does not tell where to stop."""


class BackfillOpen(Conflict):
    """The generation has an open backfill already."""


# Why a backfill is refused.
_NO_CANDIDATE = "Gallery {gallery!r} has no candidate: an upgrade has one from when it is ready until its cutover."
_NOT_READY = "Upgrade {upgrade} is {state}; its generation can be backfilled once it is ready."
_READS_NONE = "This service reads no images: its operator lists no prefix in GALLERY_IMAGES. Take source 'client'."
_DROPPED = "The generation was dropped meanwhile: its upgrade ended."
_NOTHING: dict[BackfillSource, str] = {
    "uri": "No item whose embedding h made has an image_uri; give items theirs, or take source 'client'.",
    "client": "No item's embedding in this generation was made by h: there is nothing to encode again.",
    "thumbnails": "No item has a thumbnail that is expected to beat h.",
}
_NO_UNCERTAINTY = "h does not say of these items what error it expects; take order 'random', or 'auto'."
_NO_TRAFFIC = "No query of this generation was shadowed, so nothing tells how often items are found; take 'auto'."
_NO_REFERENCES = "There is no curve without references: post images to the upgrade's references, or give a budget."
_NO_KNEE = "The references show no certain gain of a backfill, so there is no knee to stop at."
_OPEN = "Generation {generation} has an open backfill; let it end, or cancel it."


@dataclass(frozen=True)
class Budget:
    """How much may be done: so many items, a share (0 to 1) of all that are worth it, or seconds of workers' time; at
    most one of them. None: all."""

    items: int | None = None
    share: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class WantedBackfill:
    """What a client asks for: a backfill, or with `dry_run` what it would be worth."""

    gallery_name: str
    generation: WantedGeneration
    source: BackfillSource
    order: WantedOrder = "auto"
    budget: Budget = Budget()
    stop_at_knee: bool = False
    speed: float = 1.0
    seed: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class Outline:
    """A backfill that could start now."""

    generation: StoredGeneration
    candidates: Candidates
    least_error: float | None
    order: BackfillOrder
    items: int
    simulation: Simulation


def outline(writer: GalleryWriter, wanted: WantedBackfill) -> Outline:
    """Say what a backfill would be. Raises what refuses one (409), and `UnknownGallery` (404)."""
    if wanted.source == "uri" and not writer.settings.images:
        raise ReadsNoImages(_READS_NONE)
    try:
        with gone_if_dropped():
            return _outline(writer.database, writer.encoders, wanted)
    except GenerationGone as error:
        raise NoCandidate(_DROPPED) from error


def _outline(database: Database, encoders: Encoders, wanted: WantedBackfill) -> Outline:
    with database.session_scope(snapshot=True) as session:
        gallery = get_gallery(session, wanted.gallery_name)
        generation = _generation(session, gallery, wanted.generation)
        check_encodes(generation.version)
        least_error = least_error_of(session, encoders, generation) if wanted.source == "thumbnails" else None
        candidates = count_candidates(session, generation, wanted.source, least_error)
        if not candidates.items:
            raise NothingToBackfill(_NOTHING[wanted.source])
        orders = _orders(wanted.order, candidates)
        simulation = simulate(session, encoders, generation, orders, candidates.items, wanted.source, wanted.seed)
    order = simulation.order or orders[0]
    items = _items(wanted, candidates.items, simulation)
    return Outline(generation, candidates, least_error, order, items, replace(simulation, order=order))


def plan_backfill(writer: GalleryWriter, wanted: WantedBackfill) -> Backfill:
    """Begin a backfill. Raises what `outline` does, and `BackfillOpen` (409)."""
    found = outline(writer, wanted)
    try:
        with writer.database.session_scope() as session:
            return _insert(session, wanted, found)
    except GenerationGone as error:
        raise NoCandidate(_DROPPED) from error
    except IntegrityError as error:
        raise BackfillOpen(_OPEN.format(generation=found.generation.id)) from error


def start_backfill(session: Session, backfill_id: int) -> None:
    """Give a planned backfill its items; nothing if it is not planned any more. Raises `GenerationGone`."""
    backfill = lock_state(session, backfill_id)
    if backfill.state is not BackfillState.PLANNED:
        return
    generation = get_stored_generation(session, backfill.gallery_id, backfill.generation_id)
    items = choose_items(session, backfill, generation)
    backfill.items = items
    session.flush()
    change_state(session, backfill_id, BackfillAction.START)


def _generation(session: Session, gallery: Gallery, wanted: WantedGeneration) -> StoredGeneration:
    if wanted == "active":
        return get_stored_generation(session, gallery.id, gallery.active_generation_id or 0)
    upgrade = find_open_upgrade(session, gallery.id)
    if upgrade is None:
        raise NoCandidate(_NO_CANDIDATE.format(gallery=gallery.name))
    if upgrade.state is not State.READY:
        raise NoCandidate(_NOT_READY.format(upgrade=upgrade.id, state=upgrade.state))
    return get_stored_generation(session, gallery.id, upgrade.to_generation_id)


def _orders(wanted: WantedOrder, candidates: Candidates) -> list[BackfillOrder]:
    """Return the orders that there is something to go by for, the one to take where nothing tells them apart first."""
    if wanted == "uncertainty" and not candidates.with_uncertainty:
        raise OrderUnknown(_NO_UNCERTAINTY)
    if wanted == "traffic" and not candidates.found:
        raise OrderUnknown(_NO_TRAFFIC)
    if wanted != "auto":
        return [wanted]
    known: list[tuple[BackfillOrder, int]] = [
        ("uncertainty", candidates.with_uncertainty),
        ("random", candidates.items),
        ("traffic", candidates.found),
    ]
    return [order for order, items in known if items]


def _items(wanted: WantedBackfill, candidates: int, simulation: Simulation) -> int:
    budget = wanted.budget
    items = candidates if budget.items is None else min(budget.items, candidates)
    if budget.share is not None:
        items = math.ceil(budget.share * candidates)
    if wanted.stop_at_knee and not wanted.dry_run:
        if not simulation.references:
            raise NoCurve(_NO_REFERENCES)
        if simulation.knee is None:
            raise NoCurve(_NO_KNEE)
        items = min(items, math.ceil(simulation.knee * candidates))
    return items


def _insert(session: Session, wanted: WantedBackfill, found: Outline) -> Backfill:
    lock_gallery(session, found.generation.gallery_id)  # so that neither it nor the generation goes meanwhile
    get_stored_generation(session, found.generation.gallery_id, found.generation.id)
    backfill = Backfill(
        gallery_id=found.generation.gallery_id,
        generation_id=found.generation.id,
        source=wanted.source,
        order=found.order,
        seed=wanted.seed,
        candidates=found.candidates.items,
        items=found.items,
        seconds=wanted.budget.seconds,
        least_error=found.least_error,
        simulation=found.simulation.to_json(),
        speed=wanted.speed,
        state=BackfillState.PLANNED,
    )
    session.add(backfill)
    session.flush()  # its id goes into its first event
    session.add(BackfillEvent(backfill_id=backfill.id, state=BackfillState.PLANNED))
    planned = {"gallery": wanted.gallery_name, "generation": found.generation.id, "items": found.items}
    record(session, Act.BACKFILL_STARTED, Subject("backfill", backfill.id), after=planned)
    send_after_commit(session, ADVANCE_BACKFILL, backfill.id)
    session.refresh(backfill)
    return backfill
