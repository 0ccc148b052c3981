"""`POST /v1/galleries/{g}/images/references`: ingest of images that are kept elsewhere."""

from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from service.api.bodies import TABLE, body_of
from service.api.dependencies import NamePath, PartsDependency, SessionDependency
from service.api.jobs import JobView, job_view
from service.api.json_bodies import Body, is_json, parse_json
from service.api.refusals import refusals
from service.api.uploads import spooled_body
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.new_items import InvalidItem, NewItem
from service.domain.ingest.references import InvalidReferences, TooManyReferences, plan_ingest, read_references
from service.image_sources.errors import LocationNotAllowed
from service.networks.encoders import VersionWithoutNetworks

router = APIRouter(prefix="/galleries", tags=["images"])


class ImageReference(Body):
    """An image that is read from where `image_uri` says that it is kept."""

    id: str
    image_uri: str
    label: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


_LIST = TypeAdapter(list[ImageReference])
_BODY = body_of({"application/json": {"type": "array", "items": ImageReference.model_json_schema()}, **TABLE})


def _references(request: Request, body: Annotated[BinaryIO, Depends(spooled_body)]) -> list[NewItem]:
    """Return the list, as JSON where the request says so, or else as a table."""
    if not is_json(request.headers):
        return read_references(body)
    try:
        references = _LIST.validate_python(parse_json(body.read()))
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"location": list(e["loc"]), "detail": e["msg"]} for e in error.errors()[:100]
        ]
        raise InvalidReferences("The body is not a list of {id, image_uri, label?, metadata?}.", errors) from error
    return [NewItem(one.id, one.metadata, one.label, one.image_uri) for one in references]


@router.post(
    "/{name}/images/references",
    status_code=202,
    openapi_extra=_BODY,
    responses=refusals(
        UnknownGallery, InvalidReferences, InvalidItem, LocationNotAllowed, TooManyReferences, VersionWithoutNetworks
    ),
)
def post_references(
    name: NamePath,
    references: Annotated[list[NewItem], Depends(_references)],
    parts: PartsDependency,
    session: SessionDependency,
    response: Response,
) -> JobView:
    """Queue a job that reads, encodes and stores the images of a list: JSON, or an Arrow IPC stream or a Parquet file
    with columns id, image_uri, label?, metadata?.

    One that cannot be read is rejected alone, with its reason in `/v1/jobs/{id}/rejected`; what can be refused of the
    list itself is refused at once (422), and nothing of it is kept.
    """
    parts.quotas.take_images(len(references))
    job = plan_ingest(session, parts.images, name, references, parts.settings)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_view(job)
