"""`/v1/erasures`: removing what the service has of items, a gallery or a tenant, with a proof."""

from typing import Annotated, Self

from fastapi import APIRouter, Response
from pydantic import Field, StringConstraints, model_validator

from service.access.tenancy import NotYourGallery
from service.api.dependencies import Name, SessionDependency
from service.api.jobs import JobView, job_view
from service.api.json_bodies import Body, JsonRoute
from service.api.refusals import refusals
from service.domain.erasure.erasures import MAX_IDS, UnknownTenant, WantedErasure, plan_erasure
from service.domain.gallery.galleries import GalleryBusy, UnknownGallery
from service.domain.gallery.new_items import InvalidItem

router = APIRouter(prefix="/erasures", tags=["audit"], route_class=JsonRoute)


ItemId = Annotated[str, StringConstraints(min_length=1)]


class NewErasure(Body):
    """Items of a gallery by their `ids`, known or not; without `ids`, the gallery; or every gallery of a `tenant`."""

    gallery: Name | None = None
    ids: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_IDS)] | None = None
    tenant: Name | None = None

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if (self.gallery is None) == (self.tenant is None) or (self.tenant is not None and self.ids is not None):
            raise ValueError("Give a gallery, with ids or as a whole, or else a tenant.")
        return self


@router.post(
    "", status_code=202, responses=refusals(UnknownGallery, UnknownTenant, InvalidItem, GalleryBusy, NotYourGallery)
)
def post_erasure(new: NewErasure, session: SessionDependency, response: Response) -> JobView:
    """Queue a job that removes all that the service has of items, a gallery or a tenant: rows of every generation,
    indexes, samples of queries, references, queries that are the same images, kept images, kept answers.

    Its `result` is the proof: what was found, removed and is there in each place, what is left elsewhere and why, and a
    SHA-256 of it all, which is in the audit too. 409 for a whole gallery while an upgrade or a backfill of it is open.
    """
    job = plan_erasure(session, WantedErasure(new.gallery, new.ids, new.tenant))
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_view(job)
