"""`/v1/galleries/{g}/upgrades` and `/v1/upgrades/{id}`."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from service.api.dependencies import IdPath, Name, NamePath, Parts, PartsDependency, SessionDependency
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.domain import cutover, upgrades
from service.domain.cutover_requests import cut_over_and_wait
from service.domain.progress import progress_of
from service.tables import Gallery, Generation, ModelVersion, Upgrade

router = APIRouter(tags=["upgrades"])


class NewUpgrade(BaseModel):
    """`transformation` is the id of one to use; else the path of fewest hops is found."""

    model_config = ConfigDict(extra="forbid")

    to_version: Name
    transformation: int | None = None
    cutover: Literal["auto", "manual"] = "manual"


class LegView(BaseModel):
    generation: int
    transformations: list[int]


class PhaseView(BaseModel):
    done: int
    total: int
    unit: str
    rate: float | None
    eta_seconds: float | None


class UpgradeView(BaseModel):
    id: int
    gallery: str
    state: str
    cutover: str
    from_version: str
    to_version: str
    from_generation: int
    to_generation: int
    path: list[LegView]
    progress: dict[str, PhaseView]
    evaluation: dict[str, Any] | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    live_at: datetime | None
    finished_at: datetime | None


def _view(session: Session, upgrade: Upgrade) -> UpgradeView:
    before = session.get_one(Generation, upgrade.from_generation_id)
    after = session.get_one(Generation, upgrade.to_generation_id)
    return UpgradeView(
        id=upgrade.id,
        gallery=session.get_one(Gallery, upgrade.gallery_id).name,
        state=upgrade.state,
        cutover=upgrade.cutover,
        from_version=session.get_one(ModelVersion, before.model_version_id).name,
        to_version=session.get_one(ModelVersion, after.model_version_id).name,
        from_generation=before.id,
        to_generation=after.id,
        path=[LegView(**leg) for leg in upgrade.legs],
        progress={phase: PhaseView(**values) for phase, values in progress_of(session, upgrade).items()},
        evaluation=upgrade.evaluation,
        error=upgrade.error,
        created_at=upgrade.created_at,
        updated_at=upgrade.updated_at,
        live_at=upgrade.live_at,
        finished_at=upgrade.finished_at,
    )


@router.post("/galleries/{name}/upgrades", status_code=202)
def plan_upgrade(name: NamePath, new: NewUpgrade, session: SessionDependency, response: Response) -> UpgradeView:
    """Start an upgrade: the worker derives the next generation while the active one goes on answering."""
    upgrade = upgrades.plan_upgrade(session, name, new.to_version, new.cutover, new.transformation)
    response.headers["Location"] = f"/v1/upgrades/{upgrade.id}"
    session.refresh(upgrade)
    return _view(session, upgrade)


@router.get("/galleries/{name}/upgrades")
def list_upgrades(
    name: NamePath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[UpgradeView]:
    """Return a gallery's upgrades, oldest first."""
    found = upgrades.list_upgrades(session, name, decode_cursor(cursor), limit + 1)
    return page_of([_view(session, upgrade) for upgrade in found], [upgrade.id for upgrade in found], limit)


@router.get("/upgrades/{upgrade_id}")
def get_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Return an upgrade with its progress, counted from rows."""
    return _view(session, upgrades.get_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/pause")
def pause_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Pause; answered when no batch is in flight."""
    return _view(session, upgrades.pause_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/resume")
def resume_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Go on where the pause was."""
    return _view(session, upgrades.resume_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/retry")
def retry_upgrade(upgrade_id: IdPath, session: SessionDependency) -> UpgradeView:
    """Go on after a failure; finished batches are kept."""
    return _view(session, upgrades.retry_upgrade(session, upgrade_id))


@router.post("/upgrades/{upgrade_id}/cancel")
def cancel_upgrade(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Give up an upgrade that is not live; its generation is dropped."""
    return _act(parts, upgrade_id, upgrades.cancel_upgrade)


@router.post("/upgrades/{upgrade_id}/cutover")
def cut_over(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Make a ready upgrade live; answered when queries here are answered by the new model version."""
    cut_over_and_wait(parts.database, upgrade_id, parts.settings.cutover_wait_seconds)
    return _act(parts, upgrade_id, upgrades.get_upgrade)


@router.post("/upgrades/{upgrade_id}/rollback")
def roll_back(upgrade_id: IdPath, parts: PartsDependency, accept_loss: bool = False) -> UpgradeView:
    """Make the previous generation active again. 409 names the items that only the new generation has; they are
    deleted with `accept_loss=true`."""
    return _act(parts, upgrade_id, lambda session, id_: cutover.roll_back(session, id_, accept_loss=accept_loss))


@router.post("/upgrades/{upgrade_id}/finalize")
def finalize(upgrade_id: IdPath, parts: PartsDependency) -> UpgradeView:
    """Drop the previous generation of a live upgrade; from then on there is no rollback."""
    return _act(parts, upgrade_id, cutover.finalize)


def _act(parts: Parts, upgrade_id: int, action: Callable[[Session, int], Upgrade]) -> UpgradeView:
    """Commit the action, then bring this process's replica along before answering."""
    with parts.database.session_scope() as session:
        upgrade = action(session, upgrade_id)
    parts.replicas.refresh(upgrade.gallery_id)
    with parts.database.session_scope() as session:
        return _view(session, upgrades.get_upgrade(session, upgrade_id))
