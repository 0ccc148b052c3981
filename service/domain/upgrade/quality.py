"""What is known of how good a gallery's embeddings are: where they come from, what h expects of them, and what the
upgrades that led here measured. Nothing is measured here."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import StoredGeneration, get_stored_generation, known_uncertainty
from service.domain.judging.reports import newest_reports
from service.tables import Gallery, Generation, ModelVersion, Report, Transformation, Upgrade
from service.vectors.rows import Origin


@dataclass(frozen=True)
class OriginShare:
    """Items of one origin and number of hops. uncertainty: the mean of what h expects of those `uncertainty_items` of
    them for which it says it; None where it says it for none."""

    origin: str
    hops: int
    items: int
    uncertainty: float | None
    uncertainty_items: int


@dataclass(frozen=True)
class Step:
    """An upgrade that led here. `versions` are those that its path went through, from the first to the last."""

    upgrade: Upgrade
    versions: tuple[str, ...]
    transformations: tuple[int, ...]
    report: Report | None

    @property
    def gates(self) -> list[dict[str, Any]]:
        """What its newest report measured for the gates."""
        found: list[dict[str, Any]] = [] if self.report is None else json.loads(self.report.content)["gates"]
        return found


@dataclass(frozen=True)
class Quality:
    """Of the active generation; `steps` oldest first, as most of its rows took them."""

    gallery: Gallery
    active: StoredGeneration
    origins: list[OriginShare]
    steps: list[Step]

    @property
    def versions(self) -> list[str]:
        """The model versions from that of the pixels, or the import, to the active one."""
        return [*(name for step in self.steps for name in step.versions[:-1]), self.active.version.name]

    @property
    def uncertainty(self) -> float | None:
        """The mean over all items for which h says what it expects."""
        said = [share for share in self.origins if share.uncertainty is not None]
        count = sum(share.uncertainty_items for share in said)
        return sum((share.uncertainty or 0) * share.uncertainty_items for share in said) / count if count else None


def quality_of(database: Database, gallery_name: str) -> Quality:
    """Return what is known of a gallery, all of it of one moment. Raises `UnknownGallery` (404).

    It reads every row of the active generation once (docs/api.md says what that costs).
    """
    with database.session_scope(snapshot=True) as session:
        gallery = get_gallery(session, gallery_name)
        assert gallery.active_generation_id is not None
        active = get_stored_generation(session, gallery.id, gallery.active_generation_id)
        return Quality(gallery, active, _origins(session, active), _steps(session, gallery))


def _origins(session: Session, active: StoredGeneration) -> list[OriginShare]:
    # The active generation has the current row of every live item, and no others: no join with items is needed.
    said = known_uncertainty("e")
    query = text(
        f"SELECT origin, hops, count(*), avg({said}), count({said}) FROM {active.table} e GROUP BY origin, hops"
        " ORDER BY origin, hops"
    )
    return [OriginShare(Origin(origin).label, *rest) for origin, *rest in session.execute(query)]


def _steps(session: Session, gallery: Gallery) -> list[Step]:
    """Go back from the active generation to one that no upgrade made, along the first leg of each upgrade."""
    query = select(Upgrade).where(Upgrade.gallery_id == gallery.id)
    made_by = {upgrade.to_generation_id: upgrade for upgrade in session.scalars(query)}
    upgrades: list[Upgrade] = []
    generation_id = gallery.active_generation_id
    while generation_id in made_by:
        upgrades.insert(0, made_by[generation_id])
        generation_id = upgrades[0].legs[0].generation_id
    reports = newest_reports(session, [upgrade.id for upgrade in upgrades])
    return [_step(session, upgrade, reports.get(upgrade.id)) for upgrade in upgrades]


def _step(session: Session, upgrade: Upgrade, report: Report | None) -> Step:
    leg = upgrade.legs[0]
    path = [session.get_one(Transformation, transformation_id) for transformation_id in leg.transformation_ids]
    first = session.get_one(Generation, leg.generation_id).model_version_id
    version_ids = [first, *(transformation.to_version_id for transformation in path)]
    names = tuple(session.get_one(ModelVersion, version_id).name for version_id in version_ids)
    if report is not None:
        session.refresh(report, ["content"])  # what lists of reports leave out
    return Step(upgrade, names, leg.transformation_ids, report)
