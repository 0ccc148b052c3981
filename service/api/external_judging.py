"""`/v1/external-upgrades/{id}/references`, `/evaluate` and `/report`: what an upgrade of another store is judged by."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from service.api.bodies import TABLE, body_of
from service.api.dependencies import IdPath, PartsDependency, SessionDependency
from service.api.json_bodies import JsonRoute
from service.api.judging import EvaluationView, NewEvaluation
from service.api.refusals import refusals
from service.api.uploads import spooled_body
from service.domain.external import evidence, reports, upgrades
from service.domain.external.evidence import NoVectorAccepted
from service.domain.external.reports import ExternalNotReady, UnknownExternalReport
from service.domain.external.upgrades import ExternalUpgradeEnded, UnknownExternalUpgrade
from service.domain.verdict import Verdict
from service.vectors.arrow import InvalidImport, UnknownFormat
from service.vectors.bounded_tables import TableLimits, TableTooLarge

router = APIRouter(tags=["external upgrades"], route_class=JsonRoute)


class DrawnReferencesView(BaseModel):
    """Keys of rows whose vectors by the new model version would be evidence, how many are `given`, of how many that
    were `drawn`."""

    ids: list[str]
    given: int
    drawn: int


class VectorResultView(BaseModel):
    id: str
    status: Literal["accepted", "rejected"]
    error: str | None


class VectorsAnswer(BaseModel):
    results: list[VectorResultView]


class ExternalReportView(BaseModel):
    """`content` holds the gates, what was measured, and what the verification found; `evidence` is the number of
    references."""

    report: int
    verdict: Verdict
    evidence: int
    seconds: float
    created_at: datetime
    content: dict[str, Any]


_BODY = body_of(TABLE)


@router.get(
    "/external-upgrades/{external_id}/references",
    responses=refusals(UnknownExternalUpgrade, ExternalUpgradeEnded),
)
def draw_external_references(
    external_id: IdPath,
    session: SessionDependency,
    wanted: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    seed: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> DrawnReferencesView:
    """Return keys of rows that were drawn as their ranges were written: what the new model version gives for their
    images lets the upgrade be judged."""
    upgrade = upgrades.get_open_external_upgrade(session, external_id)
    return DrawnReferencesView(**asdict(evidence.draw_references(session, upgrade, wanted, seed)))


@router.post(
    "/external-upgrades/{external_id}/references",
    openapi_extra=_BODY,
    responses=refusals(
        UnknownExternalUpgrade, ExternalUpgradeEnded, NoVectorAccepted, UnknownFormat, InvalidImport, TableTooLarge
    ),
)
def give_external_references(
    external_id: IdPath, body: Annotated[BinaryIO, Depends(spooled_body)], parts: PartsDependency
) -> VectorsAnswer:
    """Take an Arrow IPC stream or a Parquet file with columns id and embedding: what the new model version gives for
    rows that were drawn. One that was not is rejected alone; 422 only if every one is."""
    limits = TableLimits(parts.settings.max_table_rows, parts.settings.max_table_bytes)
    with parts.database.session_scope() as session:
        upgrade = upgrades.get_open_external_upgrade(session, external_id)
        found = evidence.give_references(session, upgrade, body, limits)
    return VectorsAnswer(results=[VectorResultView(id=r.id, status=r.status, error=r.error) for r in found])


@router.post(
    "/external-upgrades/{external_id}/evaluate",
    status_code=202,
    responses=refusals(UnknownExternalUpgrade, ExternalNotReady),
)
def evaluate_external(
    external_id: IdPath, session: SessionDependency, new: NewEvaluation | None = None
) -> EvaluationView:
    """Have a worker write another report on an upgrade that is ready, with the references that there are now."""
    seed = (new or NewEvaluation()).seed
    return EvaluationView(report=reports.ask_for_report(session, external_id, seed))


@router.get(
    "/external-upgrades/{external_id}/report",
    responses=refusals(UnknownExternalUpgrade, UnknownExternalReport),
)
def get_external_report(external_id: IdPath, session: SessionDependency) -> ExternalReportView:
    """Return the newest report on an upgrade."""
    upgrade = upgrades.get_external_upgrade(session, external_id)
    report = reports.get_report(session, upgrade.id)
    return ExternalReportView(
        report=report.number,
        verdict=report.verdict,
        evidence=report.evidence,
        seconds=report.seconds,
        created_at=report.created_at,
        content=reports.content_of(report),
    )
