"""How an upgrade is baked, as a client says it and is shown it."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from service.api.json_bodies import Body
from service.domain.guardrails import Bake, Guardrails, Outcome
from service.domain.judging.baked_queries import KEPT
from service.tables import Upgrade


class GuardrailsView(Body):
    """What rolls an upgrade back while it is baked: the `errors` (share of queries that the new generation alone
    fails), `empty_answers` (share that finds nothing any more), `p99_ratio` (of how long both take) that may be at
    most, and the mean `overlap`@10 of both answers that must be at least; null watches nothing."""

    errors: Annotated[float, Field(ge=0, le=1)] | None = 0.01
    p99_ratio: Annotated[float, Field(ge=1, le=1_000, allow_inf_nan=False)] | None = 2.0
    empty_answers: Annotated[float, Field(ge=0, le=1)] | None = 0.01
    overlap: Annotated[float, Field(ge=0, le=1)] | None = 0.2


class NewBake(Body):
    """For `minutes` after the cutover, a `share` of image queries is asked of the previous generation too, off their
    path; from `least_queries` of them on, a guardrail that breaks rolls the upgrade back."""

    minutes: Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    least_queries: Annotated[int, Field(ge=10, le=KEPT)] = 50
    guardrails: GuardrailsView = GuardrailsView()

    def wanted(self) -> Bake:
        return Bake(self.minutes, self.share, self.least_queries, Guardrails(**self.guardrails.model_dump()))


class BakeFiguresView(BaseModel):
    """What was measured on the newest `n` queries that both generations were asked: how many only the new one `failed`,
    and how many found nothing any more (`empty`); of the `timed` ones that both answered, the 99th percentiles in
    seconds, and how many were too `slow`; the mean overlap@10 of the `compared` ones, and its deviation. `broken` are
    the guardrails that did not hold."""

    n: int
    failed: int
    empty: int
    timed: int
    slow: int
    p99_before: float | None
    p99_after: float | None
    compared: int
    overlap: float | None
    overlap_deviation: float | None
    broken: list[dict[str, str | float]]


class BakeResultView(BaseModel):
    """How a bake ended: `passed`, `undecided` (too few queries came), `rolled_back`, `not_rolled_back` (a guardrail
    broke, and a rollback was refused) or `ended` by request."""

    outcome: Outcome
    reason: str
    figures: BakeFiguresView | None


class BakeView(NewBake):
    """It runs from the cutover until `ends_at`, null before it, or until there is a `result`."""

    ends_at: datetime | None
    result: BakeResultView | None


def bake_view(upgrade: Upgrade) -> BakeView | None:
    """Return how an upgrade is baked; None where it is not to be."""
    if upgrade.bake is None:
        return None
    result = None if upgrade.bake_result is None else BakeResultView(**asdict(upgrade.bake_result))
    return BakeView(**asdict(upgrade.bake), ends_at=upgrade.bake_ends_at, result=result)
