"""`GET /v1/galleries/{g}/quality`."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.dependencies import NamePath, PartsDependency
from service.api.refusals import refusals
from service.domain.gallery.galleries import UnknownGallery
from service.domain.upgrade import quality
from service.domain.verdict import Verdict

router = APIRouter(prefix="/galleries", tags=["galleries"])


class OriginView(BaseModel):
    """How many items have this origin and number of hops. `uncertainty` is the mean squared error that h expects of
    `uncertainty_items` of them, null where it says it of none."""

    origin: str
    hops: int
    items: int
    uncertainty: float | None
    uncertainty_items: int


class GateFigure(BaseModel):
    """What was measured for a gate, with its interval; null where nothing could be."""

    metric: str
    slice: str | None
    value: float | None
    low: float | None
    high: float | None
    limit: float
    outcome: str
    n: int


class MeasuredView(BaseModel):
    """The newest report on an upgrade: `/v1/upgrades/{id}/report` has all of it."""

    report: int
    verdict: Verdict
    evidence: int
    gates: list[GateFigure]


class StepView(BaseModel):
    """An upgrade that led to the active generation, through these versions; `measured` is null if it was not judged."""

    upgrade: int
    versions: list[str]
    transformations: list[int]
    live_at: datetime | None
    measured: MeasuredView | None


class QualityView(BaseModel):
    """`versions` lead from that of the pixels, or of the import, to the active one, as most items took them."""

    gallery: str
    model_version: str
    generation: int
    revision: int
    items: int
    uncertainty: float | None
    origins: list[OriginView]
    versions: list[str]
    upgrades: list[StepView]


@router.get("/{name}/quality", responses=refusals(UnknownGallery))
def get_quality(name: NamePath, parts: PartsDependency) -> QualityView:
    """Say where a gallery's embeddings come from, what error h expects of them, and what the upgrades that led here
    measured. Reads every row of the active generation once."""
    found = quality.quality_of(parts.database, name)
    return QualityView(
        gallery=found.gallery.name,
        model_version=found.active.version.name,
        generation=found.active.id,
        revision=found.gallery.revision,
        items=found.gallery.items,
        uncertainty=found.uncertainty,
        origins=[OriginView(**vars(share)) for share in found.origins],
        versions=found.versions,
        upgrades=[_step(step) for step in found.steps],
    )


def _step(step: quality.Step) -> StepView:
    report = step.report
    measured = None
    if report is not None:
        gates = [GateFigure.model_validate(gate) for gate in step.gates]
        measured = MeasuredView(report=report.number, verdict=report.verdict, evidence=report.evidence, gates=gates)
    return StepView(
        upgrade=step.upgrade.id,
        versions=list(step.versions),
        transformations=list(step.transformations),
        live_at=step.upgrade.live_at,
        measured=measured,
    )
