"""`/v1/upgrades/{id}/references`, `/evaluate` and `/reports`: evidence in, verdict out."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from service.api.bodies import FILE, TABLE, body_of, form_of
from service.api.decisions import DecisionView, decision_on
from service.api.dependencies import IdPath, PartsDependency, Session, SessionDependency
from service.api.images import OF_IMAGES, image_uploads
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.api.report_page import EXAMPLES_SHOWN, SECURITY_POLICY, render_report
from service.api.representations import Representation, RepresentationDependency
from service.api.uploads import UploadForm, spooled_body
from service.domain.gallery.items import UnknownItem
from service.domain.gallery.new_items import InvalidItem
from service.domain.judging import blind_votes, reference_pairs, reference_vectors, reports
from service.domain.judging.blind_votes import Side
from service.domain.judging.examples import ExampleKind, read_examples, read_thumbnails
from service.domain.judging.reference_pairs import NoReferenceAccepted, ReferenceImage, ReferenceResult
from service.domain.judging.reports import UnknownReport
from service.domain.upgrade import upgrades
from service.domain.upgrade.progress import describe_upgrades
from service.domain.upgrade.upgrades import NotReady, UnknownUpgrade, UpgradeEnded
from service.domain.verdict import Verdict
from service.tables import Report, Upgrade
from service.vectors.arrow import BadRows, InvalidImport, UnknownFormat
from service.vectors.bounded_tables import TableLimits, TableTooLarge

router = APIRouter(prefix="/upgrades", tags=["judging"], route_class=JsonRoute)

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class WantedReferencesView(BaseModel):
    """Items whose images would be evidence, and how many of the gallery's have been `given` already."""

    ids: list[str]
    given: int


class ReferenceResultView(BaseModel):
    id: str
    status: Literal["accepted", "rejected"]
    error: str | None


class ReferencesAnswer(BaseModel):
    results: list[ReferenceResultView]


class NewEvaluation(Body):
    """`seed` is that of what is drawn: the same rows and seed give the same report, to the byte."""

    seed: Seed = 0


class EvaluationView(BaseModel):
    """The number that the report will have."""

    report: int


class ReportLine(BaseModel):
    """`revision` is the gallery's that the report was made at, and `evidence` the number of its images that both
    versions encoded, and of queries from its query sets; `seconds` is what judging took."""

    report: int
    verdict: Verdict
    revision: int
    evidence: int
    seconds: float
    created_at: datetime


class ReportView(ReportLine):
    """`content` holds the gates and all that was measured, but for the examples, which are items by ids of our own:
    `/report/examples` says which they are. `decision` is how the upgrade went live, if it did on this report."""

    content: dict[str, Any]
    decision: DecisionView | None


class NewVote(Body):
    """On the two answers to the item `id`, as they stand on the console's blind comparison: which side is better."""

    id: Annotated[str, Field(min_length=1)]
    better: Annotated[Side, Field(strict=False)]


class TallyView(BaseModel):
    """How many blind votes there are for the answers before, after, and neither; `p_value` is that of the two-sided
    sign test, null without a choice."""

    before: int
    after: int
    neither: int
    p_value: float | None


_FORM = body_of(
    form_of(
        {
            "files": {"type": "array", "items": FILE},
            "items": {"type": "string", "description": "JSON list of {id?}, one per file in file order"},
        },
        required=["files"],
    )
)


@router.get("/{upgrade_id}/references", responses=refusals(UnknownUpgrade, UpgradeEnded))
def draw_references(
    upgrade_id: IdPath,
    session: SessionDependency,
    wanted: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    seed: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> WantedReferencesView:
    """Draw items whose images, given again, let the upgrade be judged: of each label about its share of the gallery."""
    upgrade = upgrades.get_open_upgrade(session, upgrade_id)
    found = reference_pairs.draw_references(session, upgrade, wanted, seed)
    return WantedReferencesView(ids=found.ids, given=found.given)


@router.post(
    "/{upgrade_id}/references",
    openapi_extra=_FORM,
    responses=refusals(UnknownUpgrade, UpgradeEnded, NoReferenceAccepted, *OF_IMAGES),
)
def post_references(upgrade_id: IdPath, form: UploadForm, parts: PartsDependency) -> ReferencesAnswer:
    """Take images of items, which both model versions encode; no image is kept. One that is not the item's image is
    rejected alone; 422 only if every one is."""
    uploads = image_uploads(form, parts.settings.max_image_bytes)
    images = [ReferenceImage(upload.item.external_id, upload.read) for upload in uploads]
    with parts.database.session_scope() as session:
        upgrade = upgrades.get_open_upgrade(session, upgrade_id)
    found = reference_pairs.add_references(parts.database, parts.search.encoders, upgrade, images)
    return _references_answer(found)


def _references_answer(found: Sequence[ReferenceResult]) -> ReferencesAnswer:
    return ReferencesAnswer(results=[ReferenceResultView(id=r.id, status=r.status, error=r.error) for r in found])


@router.post(
    "/{upgrade_id}/references/vectors",
    openapi_extra=body_of(TABLE),
    responses=refusals(
        UnknownUpgrade, UpgradeEnded, NoReferenceAccepted, UnknownFormat, InvalidImport, BadRows, TableTooLarge
    ),
)
def post_reference_vectors(
    upgrade_id: IdPath, body: Annotated[BinaryIO, Depends(spooled_body)], parts: PartsDependency
) -> ReferencesAnswer:
    """Take an Arrow IPC stream or a Parquet file with columns id and embedding: what the new model version gives for
    the images of items. One whose stored embedding was made by h is rejected alone; 422 only if every one is."""
    limits = TableLimits(parts.settings.max_table_rows, parts.settings.max_table_bytes)
    with parts.database.session_scope() as session:
        upgrade = upgrades.get_open_upgrade(session, upgrade_id)
        found = reference_vectors.give_vectors(session, upgrade, body, limits)
    return _references_answer(found)


@router.post("/{upgrade_id}/evaluate", status_code=202, responses=refusals(UnknownUpgrade, NotReady))
def evaluate(
    upgrade_id: IdPath, session: SessionDependency, response: Response, new: NewEvaluation | None = None
) -> EvaluationView:
    """Have a worker write another report on an upgrade that is ready, with the evidence that there is now."""
    number = upgrades.ask_for_report(session, upgrade_id, (new or NewEvaluation()).seed)
    response.headers["Location"] = f"/v1/upgrades/{upgrade_id}/reports/{number}"
    return EvaluationView(report=number)


@router.post("/{upgrade_id}/votes", responses=refusals(UnknownUpgrade, UnknownItem, InvalidItem))
def vote(upgrade_id: IdPath, new: NewVote, session: SessionDependency) -> TallyView:
    """Say which of two answers is better without knowing which generation gave which; a later vote on the same item
    takes the place of the one before. The tally is shown with the report, and gates nothing."""
    upgrade = upgrades.get_upgrade(session, upgrade_id)
    return _tally_view(blind_votes.vote(session, upgrade, new.id, new.better))


@router.get("/{upgrade_id}/votes", responses=refusals(UnknownUpgrade))
def get_tally(upgrade_id: IdPath, session: SessionDependency) -> TallyView:
    """Return the tally of the blind votes."""
    return _tally_view(blind_votes.tally(session, upgrades.get_upgrade(session, upgrade_id).id))


def _tally_view(found: blind_votes.Tally) -> TallyView:
    return TallyView(before=found.before, after=found.after, neither=found.neither, p_value=found.p_value)


@router.get("/{upgrade_id}/reports", responses=refusals(UnknownUpgrade))
def list_reports(
    upgrade_id: IdPath, session: SessionDependency, limit: Limit = 100, cursor: Cursor = None
) -> Page[ReportLine]:
    """Return an upgrade's reports, oldest first, without their content."""
    upgrades.get_upgrade(session, upgrade_id)
    found = reports.list_reports(session, upgrade_id, decode_cursor(cursor), limit + 1)
    return page_of([_line(report) for report in found], [report.number for report in found], limit)


_PAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}


@router.get(
    "/{upgrade_id}/report", response_model=ReportView, responses=_PAGE | refusals(UnknownUpgrade, UnknownReport)
)
def get_newest_report(
    upgrade_id: IdPath, session: SessionDependency, wanted: RepresentationDependency, response: Response
) -> ReportView | Response:
    """Return the newest report on an upgrade: as one HTML page where `Accept` prefers that, else as JSON."""
    upgrade = upgrades.get_upgrade(session, upgrade_id)
    return _represent(session, upgrade, reports.get_report(session, upgrade_id), wanted, response)


@router.get(
    "/{upgrade_id}/reports/{number}",
    response_model=ReportView,
    responses=_PAGE | refusals(UnknownUpgrade, UnknownReport),
)
def get_report(
    upgrade_id: IdPath,
    number: IdPath,
    session: SessionDependency,
    wanted: RepresentationDependency,
    response: Response,
) -> ReportView | Response:
    """Return a report on an upgrade, as HTML or JSON like the newest; 404 until it is written."""
    upgrade = upgrades.get_upgrade(session, upgrade_id)
    return _represent(session, upgrade, reports.get_report(session, upgrade_id, number), wanted, response)


def _represent(
    session: Session, upgrade: Upgrade, report: Report, wanted: Representation, response: Response
) -> ReportView | Response:
    varies = {"Vary": "Accept"}
    if wanted is Representation.JSON:
        response.headers.update(varies)
        return _view(report, decision_on(report, upgrade))
    (details,) = describe_upgrades(session, [upgrade])
    examples = read_examples(session, report, ExampleKind, EXAMPLES_SHOWN)
    page = render_report(details, report, examples, read_thumbnails(session, examples))
    return HTMLResponse(page, headers={**varies, "Content-Security-Policy": SECURITY_POLICY})


def _line(report: Report) -> ReportLine:
    return ReportLine(
        report=report.number,
        verdict=report.verdict,
        revision=report.revision,
        evidence=report.evidence,
        seconds=report.seconds,
        created_at=report.created_at,
    )


def _view(report: Report, decision: DecisionView | None) -> ReportView:
    content = json.loads(report.content)
    content["measurements"].pop("examples")
    return ReportView(**_line(report).model_dump(), content=content, decision=decision)
