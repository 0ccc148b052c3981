"""What clients see of an upgrade, and of the parts of long work."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from service.api.bakes import BakeView, bake_view
from service.api.decisions import DecisionView, decision_view
from service.api.json_bodies import Body
from service.domain.judging.gates import GateMetric
from service.domain.upgrade.progress import UpgradeDetails
from service.domain.verdict import Verdict


class GateRuleView(Body):
    """`metric` must not be below `limit`; of one slice (`attribute=value`, `cmc_at_1` alone) where there is one."""

    metric: Annotated[GateMetric, Field(strict=False)]
    limit: Annotated[float, Field(ge=-1_000, le=1, allow_inf_nan=False)]
    slice: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None


class SmoothingView(Body):
    """Each row that h makes becomes (1 - `share`) of itself and `share` of the mean of its `neighbors` nearest rows."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    neighbors: Annotated[int, Field(ge=1, le=200)] = 20


class VerdictView(BaseModel):
    """What the newest report, of this number, says: `pass`, `fail`, `inconclusive` or `not_judged`."""

    report: int
    verdict: Verdict


class LegView(BaseModel):
    generation: int
    transformations: list[int]


class PhaseView(BaseModel):
    done: int
    total: int
    unit: str
    rate: float | None
    eta_seconds: float | None


class CanaryQueriesView(BaseModel):
    """How many image queries were `asked` of the candidate by its canary, how many of these it `answered`, and how many
    it `failed`, which the active generation answered."""

    asked: int
    answered: int
    failed: int


class UpgradeView(BaseModel):
    id: int
    gallery: str
    state: str
    cutover: str
    speed: float
    from_version: str
    to_version: str
    from_generation: int
    to_generation: int
    path: list[LegView]
    progress: dict[str, PhaseView]
    observe: bool
    smoothing: SmoothingView | None
    gates: list[GateRuleView]
    judged: VerdictView | None
    decision: DecisionView | None
    canary: float
    canary_queries: CanaryQueriesView
    bake: BakeView | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    live_at: datetime | None
    finished_at: datetime | None


def upgrade_view(details: UpgradeDetails) -> UpgradeView:
    """Return what clients see of an upgrade."""
    upgrade, report = details.upgrade, details.report
    return UpgradeView(
        id=upgrade.id,
        gallery=details.gallery,
        state=upgrade.state,
        cutover=upgrade.cutover,
        speed=upgrade.speed,
        from_version=details.from_version,
        to_version=details.to_version,
        from_generation=upgrade.from_generation_id,
        to_generation=upgrade.to_generation_id,
        path=[LegView(**leg.to_json()) for leg in upgrade.legs],
        progress={name: PhaseView(**asdict(phase)) for name, phase in details.progress.items()},
        observe=upgrade.observe,
        smoothing=None if upgrade.smoothing is None else SmoothingView(**upgrade.smoothing),
        gates=[GateRuleView(**rule) for rule in upgrade.gates],
        judged=None if report is None else VerdictView(report=report.number, verdict=report.verdict),
        decision=decision_view(upgrade),
        canary=upgrade.canary,
        canary_queries=CanaryQueriesView(
            asked=upgrade.canary_answered + upgrade.canary_failed,
            answered=upgrade.canary_answered,
            failed=upgrade.canary_failed,
        ),
        bake=bake_view(upgrade),
        error=upgrade.error,
        created_at=upgrade.created_at,
        updated_at=upgrade.updated_at,
        live_at=upgrade.live_at,
        finished_at=upgrade.finished_at,
    )
