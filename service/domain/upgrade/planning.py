"""Planning an upgrade: what it would do, what refuses it, and the rows that it begins with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import logs
from service.access.quotas import check_open_upgrades
from service.audit import Act, Subject, record
from service.domain import registry
from service.domain.gallery.galleries import find_open_upgrade, get_gallery, lock_gallery
from service.domain.gallery.generations import StoredGeneration, add_generation, stored_generations
from service.domain.generation_stage import GenerationStage
from service.domain.judging.gates import GateRule, rules_for
from service.domain.judging.guardrails import Bake
from service.domain.upgrade.disk import Bytes, check_room, generation_bytes
from service.domain.upgrade.path_reasons import reason_for
from service.domain.upgrade.paths import FoundLeg, find_legs
from service.domain.upgrade.smoothing import Smoothing
from service.domain.upgrade_state import State
from service.errors import Conflict
from service.queue import ADVANCE_UPGRADE, send_after_commit
from service.settings import Settings
from service.tables import CutoverOption, Gallery, ModelVersion, Upgrade, UpgradeEvent
from service.tracing import current_trace
from service.vectors.rows import VectorFormat

events = logs.Events(__name__)


class UpgradeOpen(Conflict):
    """The gallery has an open upgrade already."""


class AlreadyThere(Conflict):
    """The gallery's active generation is under the version asked for."""


@dataclass(frozen=True)
class WantedUpgrade:
    """What a client asks for: an upgrade, or with `dry_run` what it would take. Without a `transformation_id`, the path
    of fewest hops is found. `gates` replace or add to the default ones; with `observe` nothing waits for a verdict.
    `bake` is how it is watched after its cutover; `smoothing`, how its rows are smoothed; None: not at all."""

    gallery_name: str
    to_version: str
    transformation_id: int | None = None
    cutover: CutoverOption = "manual"
    speed: float = 1.0
    dry_run: bool = False
    gates: Sequence[GateRule] = ()
    observe: bool = False
    bake: Bake | None = None
    smoothing: Smoothing | None = None


@dataclass(frozen=True)
class Outline:
    """An upgrade that could start now: its path and why it is this one, the version that the gallery is under, the
    generation it would make, and that one's size."""

    legs: list[FoundLeg]
    reason: str
    active: ModelVersion
    target: StoredGeneration
    items: int
    bytes: Bytes


def outline_upgrade(session: Session, wanted: WantedUpgrade) -> Outline:
    """Return what an upgrade would do; refuses what `plan_upgrade` would refuse, but for a disk that is too small."""
    version = registry.get_version(session, wanted.to_version)
    return _outline(session, get_gallery(session, wanted.gallery_name), version, wanted)


def plan_upgrade(session: Session, settings: Settings, wanted: WantedUpgrade) -> Upgrade:
    """Create the next generation with its empty table, and the upgrade that will fill it.

    From this commit on, ingested images are encoded for the next generation too. Raises `UpgradeOpen`, `AlreadyThere`,
    `NoPath` and `ErasesItems` (409), `UnknownGallery`, `UnknownVersion` and `UnknownTransformation` (404), `NoRoom`
    (507), and `QuotaExceeded` (429).
    """
    version = registry.get_version(session, wanted.to_version)
    gallery = lock_gallery(session, get_gallery(session, wanted.gallery_name).id)
    outline = _outline(session, gallery, version, wanted)
    rules_for(gallery.task, wanted.gates)  # raises for one that cannot be
    check_room(settings, outline.bytes)
    legs = outline.legs

    generation = add_generation(
        session,
        gallery,
        version,
        state=GenerationStage.BUILDING,
        has_side_information=legs[0].gives_side_information,
        parent_generation_id=legs[0].generation_id,
        transformation_id=legs[0].transformation_ids[-1],
    )
    upgrade = Upgrade(
        gallery_id=gallery.id,
        from_generation_id=gallery.active_generation_id,
        to_generation_id=generation.id,
        legs=legs,
        cutover=wanted.cutover,
        speed=wanted.speed,
        gates=[asdict(rule) for rule in wanted.gates],
        observe=wanted.observe,
        bake=None if wanted.bake is None else wanted.bake.to_json(),
        smoothing=None if wanted.smoothing is None else wanted.smoothing.to_json(),
        state=State.PLANNED,
        start_revision=gallery.revision,
        trace=current_trace(),
    )
    _begin(session, settings, upgrade, gallery.name, version.name)
    return upgrade


def _begin(session: Session, settings: Settings, upgrade: Upgrade, gallery_name: str, to_version: str) -> None:
    """Record an upgrade that is planned, and have a worker start it."""
    session.add(upgrade)
    try:
        session.flush()  # the unique index on open upgrades has the last word
    except IntegrityError as error:
        raise UpgradeOpen(f"Gallery {gallery_name!r} has an open upgrade.") from error
    check_open_upgrades(session, settings)

    session.add(UpgradeEvent(upgrade_id=upgrade.id, state=State.PLANNED))
    send_after_commit(session, ADVANCE_UPGRADE, upgrade.id)
    legs = [leg.to_json() for leg in upgrade.legs]
    opened = {
        "gallery": gallery_name,
        "to_version": to_version,
        "path": legs,
        "cutover": upgrade.cutover,
        "gates": upgrade.gates,
        "observe": upgrade.observe,
        "bake": upgrade.bake,
        "smoothing": upgrade.smoothing,
    }
    record(session, Act.UPGRADE_OPENED, Subject("upgrade", upgrade.id), after=opened)
    events.info("upgrade.planned", upgrade_id=upgrade.id, gallery_id=upgrade.gallery_id, legs=legs)
    session.refresh(upgrade)


def _outline(session: Session, gallery: Gallery, version: ModelVersion, wanted: WantedUpgrade) -> Outline:
    """Return what an upgrade of the gallery to `version` would do.

    Raises `UpgradeOpen`, `AlreadyThere`, `NoPath` and `ErasesItems` (409), and `UnknownTransformation` (404).
    """
    open_upgrade = find_open_upgrade(session, gallery.id)
    if open_upgrade is not None:
        raise UpgradeOpen(f"Upgrade {open_upgrade.id} of gallery {gallery.name!r} is open; finish or cancel it first.")
    stored = stored_generations(session, gallery.id)
    active = next(g for g in stored if g.id == gallery.active_generation_id)
    if active.version.id == version.id:
        raise AlreadyThere(f"Gallery {gallery.name!r} is already under model version {version.name!r}.")
    retained = [generation for generation in stored if generation is not active]
    legs = find_legs(session, version, active, retained, wanted.transformation_id, gallery.task)
    reason = reason_for(session, legs, stored, version, gallery.task, asked_for=wanted.transformation_id is not None)

    side_dim = version.side_information_dim if legs[0].gives_side_information else None
    vector_format = VectorFormat(version.embedding_dim, side_dim, gallery.dtype)
    target = StoredGeneration(0, gallery.id, gallery.metric, version, vector_format, GenerationStage.BUILDING)
    needed = generation_bytes(vector_format, gallery.items)
    if wanted.smoothing is not None:  # rows of before stay until a vacuum, and the index is built twice
        needed = Bytes(2 * needed.database, 2 * needed.index)
    return Outline(legs, reason, active.version, target, gallery.items, needed)
