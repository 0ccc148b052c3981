"""What workers have at hand when somebody wants an upgrade of them, counted from rows.

Workers do upgrades before all else. A training gives way to one within a second or two; an index build is not cut.
"""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.access.tenancy import own_galleries
from service.domain.batch_state import BatchState
from service.domain.job_state import UNFINISHED, JobState
from service.domain.jobs import INDEX_BUILD, TRAINING
from service.domain.upgrade.upgrades import needs_workers
from service.tables import Gallery, Job, Upgrade, UpgradeBatch

TRAINING_YIELDS_SECONDS = 2.0


@dataclass(frozen=True)
class WorkAhead:
    """`upgrades` are the ids of those that need workers, and `items` is what they still have to transform.
    `trainings` are queued or begun; `index_builds` are under way."""

    upgrades: list[int]
    items: int
    trainings: int
    index_builds: int

    def seconds(self, seconds_per_item: float) -> float:
        """Return how long it may take one worker until another upgrade has its turn, without index builds."""
        return self.items * seconds_per_item + (TRAINING_YIELDS_SECONDS if self.trainings else 0.0)

    def sentence(self) -> str:
        """Return what workers have to do, for whoever waited in vain."""
        parts = []
        if self.upgrades:
            ids = ", ".join(map(str, self.upgrades[:10])) + (", …" if len(self.upgrades) > 10 else "")
            parts.append(f"upgrades {ids} with {self.items} items to transform")
        if self.index_builds:
            parts.append(f"{self.index_builds} index builds under way, which are not cut")
        if self.trainings:
            parts.append(f"{self.trainings} trainings, which give way to upgrades")
        if not parts:
            return "Nothing else is to be done, so perhaps no worker runs."
        return f"Besides, workers have {'; '.join(parts)}."


def work_ahead(session: Session, but: int | None = None) -> WorkAhead:
    """Return what workers have to do, but for one upgrade. Upgrades of other tenants than the one that is served are
    counted by their items, and not named."""
    upgrades = select(Upgrade.id).where(needs_workers(), Upgrade.id != (but or 0)).order_by(Upgrade.id)
    ids = list(session.scalars(upgrades))
    left = select(func.coalesce(func.sum(UpgradeBatch.items), 0)).where(
        UpgradeBatch.upgrade_id.in_(ids), UpgradeBatch.state != BatchState.DONE
    )
    unplanned = (
        select(func.coalesce(func.sum(Gallery.items), 0))
        .join(Upgrade, Upgrade.gallery_id == Gallery.id)
        .where(Upgrade.id.in_(ids), Upgrade.batches_planned_at.is_(None))
    )
    named = upgrades.join(Gallery, Gallery.id == Upgrade.gallery_id).where(own_galleries())
    trainings = select(func.count()).where(Job.kind == TRAINING, Job.state.in_(UNFINISHED))
    builds = select(func.count()).where(Job.kind == INDEX_BUILD, Job.state == JobState.RUNNING)
    return WorkAhead(
        upgrades=list(session.scalars(named)),
        items=int(session.scalar(left) or 0) + int(session.scalar(unplanned) or 0),
        trainings=session.scalar(trainings) or 0,
        index_builds=session.scalar(builds) or 0,
    )
