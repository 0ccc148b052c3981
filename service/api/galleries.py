"""`/v1/galleries`."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from service.api.dependencies import Name, NamePath, PartsDependency, SessionDependency
from service.api.json_bodies import Body, JsonRoute
from service.api.pagination import Cursor, Limit, Page, decode_cursor, page_of
from service.api.refusals import refusals
from service.domain.gallery import galleries
from service.domain.gallery.galleries import GalleryBusy, GalleryExists, UnknownGallery
from service.domain.gallery.probe_images import MAX_PROBE_IMAGES
from service.domain.indexes.removal import StillRead
from service.domain.registry.versions import UnknownVersion
from service.index.protocol import IndexOption, Metric
from service.tables import Task
from service.vectors.rows import StoredDtype

ProbeImages = Annotated[int, Field(ge=0, le=MAX_PROBE_IMAGES)]

router = APIRouter(prefix="/galleries", tags=["galleries"], route_class=JsonRoute)


class NewGallery(Body):
    """Smaller distance is closer for every metric: Euclidean, 1 - cosine, or the negative inner product. `index` is the
    kind that is built for it; `auto` is exact search for a small gallery and a graph (HNSW) for a large one. `task` is
    what the gallery is searched for: one certain item, which no upgrade may make indistinguishable from others, or any
    item of a class. With `probe_images`, up to so many image files of a random sample of its items are kept, of at
    most 1 MiB each: they judge later upgrades, and show whether an encoder gives what it gave."""

    name: Name
    model_version: Name
    metric: Metric = "l2"
    dtype: StoredDtype = "float16"
    thumbnails: bool = True
    index: IndexOption = "auto"
    task: Task = "instance"
    probe_images: ProbeImages = 0


class GalleryChange(Body):
    """What is to change; at least one of them."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    index: IndexOption | SkipJsonSchema[None] = None
    task: Task | SkipJsonSchema[None] = None
    probe_images: ProbeImages | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _is_a_change(self) -> Self:
        if not self.model_fields_set or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("Give index, task, probe_images, or several of them.")
        return self


class GalleryView(BaseModel):
    name: str
    model_version: str
    generation: int
    metric: str
    dtype: str
    thumbnails: bool
    index: str
    task: str
    probe_images: int
    has_side_information: bool
    revision: int
    items: int
    created_at: datetime


def _view(details: galleries.GalleryDetails) -> GalleryView:
    gallery = details.gallery
    return GalleryView(
        name=gallery.name,
        model_version=details.version.name,
        generation=details.generation.id,
        metric=gallery.metric,
        dtype=gallery.dtype,
        thumbnails=gallery.thumbnails,
        index=gallery.index,
        task=gallery.task,
        probe_images=gallery.probe_images,
        has_side_information=details.generation.has_side_information,
        revision=gallery.revision,
        items=gallery.items,
        created_at=gallery.created_at,
    )


@router.post("", status_code=201, responses=refusals(UnknownVersion, GalleryExists))
def create_gallery(new: NewGallery, session: SessionDependency, response: Response) -> GalleryView:
    """Create an empty gallery under a model version."""
    gallery = galleries.create_gallery(
        session,
        galleries.WantedGallery(
            new.name,
            new.model_version,
            new.metric,
            new.dtype,
            new.thumbnails,
            new.index,
            new.task,
            new.probe_images,
        ),
    )
    response.headers["Location"] = f"/v1/galleries/{gallery.name}"
    return _view(galleries.describe_gallery(session, gallery))


@router.get("")
def list_galleries(session: SessionDependency, limit: Limit = 100, cursor: Cursor = None) -> Page[GalleryView]:
    """Return galleries in the order they were created."""
    found = galleries.list_galleries(session, decode_cursor(cursor), limit + 1)
    return page_of([_view(details) for details in found], [details.gallery.id for details in found], limit)


@router.get("/{name}", responses=refusals(UnknownGallery))
def get_gallery(name: NamePath, session: SessionDependency) -> GalleryView:
    """Return one gallery."""
    return _view(galleries.describe_gallery(session, galleries.get_gallery(session, name)))


@router.patch("/{name}", responses=refusals(UnknownGallery))
def change_gallery(name: NamePath, change: GalleryChange, session: SessionDependency) -> GalleryView:
    """Ask for another kind of index, or say that the gallery is searched for something else. A worker soon builds the
    index if there is a file of another kind; otherwise it takes effect when one is built. The task is what the next
    upgrade keeps to. Probe images are kept of what is ingested from now on, and removed beyond their number at once."""
    changed = galleries.change_gallery(session, name, change.index, change.task, change.probe_images)
    return _view(galleries.describe_gallery(session, changed))


@router.delete("/{name}", status_code=204, responses=refusals(UnknownGallery, GalleryBusy, StillRead))
def delete_gallery(name: NamePath, parts: PartsDependency) -> None:
    """Delete a gallery with everything in it; 409 while an upgrade of it is open."""
    galleries.remove_gallery(parts.database, parts.blobs, parts.replicas, name)
