"""Asking for an erasure: of items, of a gallery, or of all galleries of a tenant. The job removes, and proves it
(`service.domain.erasure.work`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import identity, logs
from service.access.tenancy import check_gallery_name
from service.audit import Act, Subject, actor_now, record
from service.canonical_json import digest_of
from service.domain.erasure.proof import ErasureRequest, Found, erasing
from service.domain.gallery.galleries import check_not_busy, get_gallery
from service.domain.gallery.new_items import canonical_id, check_external_id
from service.domain.job_state import WORKING, JobState
from service.domain.jobs import ERASURE
from service.errors import NotFound
from service.queue import ADVANCE_ERASURE, send_after_commit
from service.tables import Erasure, Gallery, Job

events = logs.Events(__name__)

MAX_IDS = 10_000  # of one transaction, for which other writers wait


class UnknownTenant(NotFound):
    """No gallery is this tenant's."""


@dataclass(frozen=True)
class WantedErasure:
    """What is to be erased: items of a gallery by their ids, a gallery, or everything of a tenant."""

    gallery_name: str | None = None
    ids: Sequence[str] | None = None
    tenant: str | None = None


def plan_erasure(session: Session, wanted: WantedErasure) -> Job:
    """Queue the job that erases what is wanted. Nobody needs to have heard of an id: it is looked for everywhere.

    Raises `UnknownGallery` and `UnknownTenant` (404), `InvalidItem` (422), and `GalleryBusy` (409) for a gallery as a
    whole while an upgrade or a backfill of it is open.
    """
    if wanted.tenant is not None:
        galleries = _galleries_of(session, wanted.tenant)
        subject = Subject("tenant", wanted.tenant)
    else:
        galleries = [get_gallery(session, wanted.gallery_name or "")]
        subject = Subject("gallery", galleries[0].name)
    names = _names(wanted.ids)
    if names is None:
        for gallery in galleries:
            check_not_busy(session, gallery)

    request = ErasureRequest(wanted.gallery_name, wanted.tenant, len(galleries), actor_now(), *_said(wanted.ids))
    job = Job(
        tenant=identity.current.get().tenant,
        kind=ERASURE,
        state=JobState.QUEUED,
        request=request.to_json(),
        progress=erasing(0, len(galleries)),
        result=Found().to_json(),
    )
    session.add(job)
    session.flush()  # its id is in the rows of what is to be removed
    session.add_all(
        Erasure(job_id=job.id, gallery_id=gallery.id, tenant=gallery.tenant, gallery=gallery.name, names=names)
        for gallery in galleries
    )
    session.refresh(job)
    record(session, Act.ERASURE_ASKED, subject, after={"job": job.id, **request.asked_for()})
    send_after_commit(session, ADVANCE_ERASURE, job.id)
    events.info("erasure.queued", job_id=job.id, galleries=len(galleries))
    return job


def unfinished_erasures(session: Session) -> Sequence[int]:
    """Return the erasures that a worker has something to do for: what the sweep nudges."""
    return session.scalars(select(Job.id).where(Job.kind == ERASURE, Job.state.in_(WORKING)).order_by(Job.id)).all()


def _galleries_of(session: Session, tenant: str) -> Sequence[Gallery]:
    """Return the galleries of one's own tenant, or of any for an operator. Raises `UnknownTenant` (404), and
    `NotYourGallery` (403) where the key is for some of them alone."""
    who = identity.current.get()
    galleries = session.scalars(select(Gallery).where(Gallery.tenant == tenant).order_by(Gallery.id)).all()
    may = tenant == who.tenant or who is identity.NOBODY or who.is_operator
    if not may or not (galleries or tenant == who.tenant):
        raise UnknownTenant(f"There is no gallery of a tenant {tenant!r}.")
    for gallery in galleries:
        check_gallery_name(gallery.name)
    return galleries


def _names(ids: Sequence[str] | None) -> list[str] | None:
    """Return each id in the forms that a row may have it in: the canonical one, and from before ids had one."""
    if ids is None:
        return None
    names = sorted({name for id_ in ids for name in (id_, canonical_id(id_))})
    for name in names:
        check_external_id(name)
    return names


def _said(ids: Sequence[str] | None) -> tuple[int | None, str | None]:
    """Return what is kept of the ids themselves: whoever knows them can compute it again."""
    return (None, None) if ids is None else (len(set(ids)), digest_of(sorted(set(ids))))
