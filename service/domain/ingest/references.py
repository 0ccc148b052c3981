"""Lists of references, and the jobs that are planned from them.

The list is kept in rows until each image is stored, and those that were rejected longer: they are the answer to what
became of the job. It may say anything of where images are; whether that may be read is decided when it is read, so that
a wrong URI costs its own image only.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import delete, func, insert, literal, select
from sqlalchemy.orm import Session

from service import logs
from service.db import driver_connection
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import get_stored_generation
from service.domain.gallery.imports import read_metadata
from service.domain.gallery.new_items import NewItem, check_items
from service.domain.job_state import JobState
from service.domain.jobs import INGEST, get_job
from service.domain.phases import phase_of
from service.errors import TooLarge, Unprocessable
from service.image_sources.source import ImageSource
from service.json_records import JsonRecord
from service.networks.encoders import check_encodes
from service.queue import ADVANCE_INGEST, send_after_commit
from service.settings import Settings
from service.tables import IngestBatch, IngestReference, Job
from service.vectors.arrow import check_columns, read_strings, read_table, refuse_no_rows

events = logs.Events(__name__)

MOST_REFERENCES = 250_000
_MOST_BATCH_IMAGES = 64  # what a death costs, and what other work of the same worker waits for
PHASE = "ingesting"
UNIT = "images"
_COLUMNS = {"id", "image_uri", "label", "metadata"}


class InvalidReferences(Unprocessable):
    """The list names no image."""


class TooManyReferences(TooLarge):
    """The list is longer than one job takes."""


@dataclass(frozen=True)
class IngestRequest(JsonRecord):
    """What the job's row keeps of what was asked for: into which gallery, and how many images."""

    gallery: str
    images: int


def read_references(body: BinaryIO) -> list[NewItem]:
    """Return the items of a Parquet file or Arrow stream. Raises `UnknownFormat` (415) and `InvalidImport` (422)."""
    table = read_table(body)
    check_columns(table.column_names, _COLUMNS, required=("id", "image_uri"))
    refuse_no_rows(table.num_rows)
    ids = read_strings(table, "id", nullable=False)
    image_uris = read_strings(table, "image_uri", nullable=False)
    labels = read_strings(table, "label", nullable=True)
    return [
        NewItem(str(id_), metadata, label, image_uri)
        for id_, image_uri, label, metadata in zip(ids, image_uris, labels, read_metadata(table), strict=True)
    ]


def plan_ingest(
    session: Session, source: ImageSource, gallery_name: str, items: Sequence[NewItem], settings: Settings
) -> Job:
    """Keep the list, each item of which has an `image_uri`, and queue the job that ingests it.

    Raises `UnknownGallery` (404), `InvalidItem`, `InvalidReferences` and `LocationNotAllowed` (422: nothing may be read
    at all), `TooManyReferences` (413), and `VersionWithoutNetworks` (409) where nothing encodes them.
    """
    source.check_listed()
    if not items:
        raise InvalidReferences("The list names no image.")
    if len(items) > MOST_REFERENCES:
        raise TooManyReferences(f"One job takes at most {MOST_REFERENCES:,} images; send the list in parts.")
    check_items(items, settings.max_metadata_bytes)

    gallery = get_gallery(session, gallery_name)
    check_encodes(get_stored_generation(session, gallery.id, gallery.active_generation_id or 0).version)
    job = Job(
        tenant=gallery.tenant,
        kind=INGEST,
        state=JobState.QUEUED,
        gallery_id=gallery.id,
        request=IngestRequest(gallery.name, len(items)).to_json(),
        progress={PHASE: phase_of(0, len(items), UNIT).to_json()},
    )
    session.add(job)
    session.flush()  # its id is in the rows of the list
    session.refresh(job)
    _keep_list(session, job.id, items)
    _plan_batches(session, job.id, len(items), min(settings.encode_batch_items, _MOST_BATCH_IMAGES))

    send_after_commit(session, ADVANCE_INGEST, job.id)
    events.info("ingest.queued", job_id=job.id, gallery_id=gallery.id, images=len(items))
    return job


def _keep_list(session: Session, job_id: int, items: Sequence[NewItem]) -> None:
    columns = "job_id, position, external_id, image_uri, label, metadata"
    with (
        driver_connection(session).cursor() as cursor,
        cursor.copy(f"COPY ingest_references ({columns}) FROM STDIN") as copy,
    ):
        for position, item in enumerate(items):
            row = (job_id, position, item.external_id, item.image_uri, item.label, json.dumps(item.metadata))
            copy.write_row(row)


def _plan_batches(session: Session, job_id: int, images: int, batch_images: int) -> None:
    first = func.generate_series(0, images - 1, batch_images).column_valued("first")
    batches = select(literal(job_id), first, func.least(first + batch_images, images) - 1).order_by(first)
    session.execute(insert(IngestBatch).from_select(["job_id", "first_position", "last_position"], batches))


def list_rejected(session: Session, job_id: int, after_position: int, limit: int) -> list[IngestReference]:
    """Return up to `limit` images that an ingest rejected so far, from behind a position of its list on.

    Raises `UnknownJob` (404).
    """
    get_job(session, job_id)
    query = select(IngestReference).where(
        IngestReference.job_id == job_id,
        IngestReference.position > after_position,
        IngestReference.reason.is_not(None),
    )
    return list(session.scalars(query.order_by(IngestReference.position).limit(limit)))


def remove_lists_of_ended(session: Session) -> None:
    """Remove what ingests that failed or were cancelled have left unread of their lists; others leave nothing."""
    is_unread = IngestReference.reason.is_(None)
    leaves_some = select(IngestReference.position).where(IngestReference.job_id == Job.id, is_unread).exists()
    ended = Job.state.in_((JobState.FAILED, JobState.CANCELLED))
    for job_id in session.scalars(select(Job.id).where(Job.kind == INGEST, ended, leaves_some)).all():
        session.execute(delete(IngestReference).where(IngestReference.job_id == job_id, is_unread))
