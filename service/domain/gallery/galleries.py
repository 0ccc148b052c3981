"""Galleries: creating, finding, deleting, and the row lock that orders every write to one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import identity
from service.access.tenancy import check_gallery_name, gallery_named, own_galleries
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.backfill_state import OPEN as OPEN_BACKFILL
from service.domain.gallery.generations import add_generation
from service.domain.gallery.probe_images import want_probe_images
from service.domain.generation_stage import GenerationStage
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.domain.registry.versions import get_version
from service.domain.upgrade_state import OPEN, State
from service.errors import Conflict, NotFound
from service.index.protocol import IndexOption, Metric
from service.index.replica import Replicas
from service.tables import (
    Backfill,
    Gallery,
    Generation,
    JudgedQuery,
    ModelVersion,
    QuerySet,
    Task,
    Upgrade,
    drop_embeddings_table,
)
from service.vectors.rows import StoredDtype

_WITH_VERSION = (
    select(Gallery, Generation, ModelVersion)
    .join(Generation, Generation.id == Gallery.active_generation_id)
    .join(ModelVersion, ModelVersion.id == Generation.model_version_id)
)
# An upgrade that is open is one at most, and so is one that made the active generation.
_SERVING = f"""
SELECT g.id, g.revision, g.active_generation_id, c.id, c.canary,
  b.id, CAST(b.bake ->> 'share' AS float8), b.from_generation_id
FROM galleries g
LEFT JOIN upgrades c ON c.gallery_id = g.id AND c.state = '{State.READY}' AND c.canary > 0
LEFT JOIN upgrades b ON b.gallery_id = g.id AND b.to_generation_id = g.active_generation_id
  AND b.state = '{State.LIVE}' AND b.bake_ends_at > now() AND b.bake_result IS NULL
WHERE g.name = %(name)s AND g.tenant = %(tenant)s
"""


class UnknownGallery(NotFound):
    """No gallery has this name."""


class GalleryExists(Conflict):
    """The name is taken."""


class GalleryBusy(Conflict):
    """An open upgrade or backfill needs the gallery."""


@dataclass(frozen=True)
class Trial:
    """An upgrade that a share of image queries tries."""

    upgrade_id: int
    share: float


@dataclass(frozen=True)
class Bake(Trial):
    """A trial of a generation that is active: which one it is compared with."""

    previous_generation_id: int


@dataclass(frozen=True)
class Serving:
    """Which generation of a gallery is active, the upgrade whose candidate answers a share of the image queries, and
    the one that is baked; as of a revision."""

    gallery_id: int
    revision: int
    active_generation_id: int
    canary: Trial | None
    bake: Bake | None


@dataclass(frozen=True)
class GalleryDetails:
    """A gallery with what its active generation is made of."""

    gallery: Gallery
    generation: Generation
    version: ModelVersion


@dataclass(frozen=True)
class WantedGallery:
    """What a client asks for; `probe_images` is how many images of its items are kept."""

    name: str
    model_version: str
    metric: Metric
    dtype: StoredDtype
    thumbnails: bool
    index: IndexOption = "auto"
    task: Task = "instance"
    probe_images: int = 0


def create_gallery(session: Session, wanted: WantedGallery) -> Gallery:
    """Create an empty gallery whose first generation is under the model version.

    Raises `NotYourGallery` (403), `UnknownVersion` (404) and `GalleryExists` (409).
    """
    check_gallery_name(wanted.name)
    version = get_version(session, wanted.model_version)
    gallery = Gallery(
        tenant=identity.current.get().tenant,
        name=wanted.name,
        metric=wanted.metric,
        dtype=wanted.dtype,
        thumbnails=wanted.thumbnails,
        index=wanted.index,
        task=wanted.task,
        probe_images=wanted.probe_images,
        revision=0,
    )
    session.add(gallery)
    try:
        session.flush()  # the unique name decides between two requests at once
    except IntegrityError as error:
        raise GalleryExists(f"A gallery named {wanted.name!r} exists.") from error

    generation = add_generation(
        session,
        gallery,
        version,
        state=GenerationStage.COMPLETE,
        has_side_information=version.side_information_dim is not None,
    )
    gallery.active_generation_id = generation.id
    made = {"model_version": version.name, "metric": wanted.metric, **_settings(gallery)}
    record(session, Act.GALLERY_CREATED, Subject("gallery", gallery.name), after=made)
    return gallery


def get_gallery(session: Session, name: str) -> Gallery:
    """Return the gallery, or raise `UnknownGallery` (404) or `NotYourGallery` (403)."""
    gallery = session.scalar(select(Gallery).where(gallery_named(name)))
    if gallery is None:
        raise UnknownGallery(f"There is no gallery named {name!r}.")
    return gallery


def find_serving(database: Database, name: str) -> Serving:
    """Return what answers a gallery's queries, or raise `UnknownGallery` (404) or `NotYourGallery` (403)."""
    check_gallery_name(name)
    row = database.read_row(_SERVING, {"name": name, "tenant": identity.current.get().tenant})
    if row is None:
        raise UnknownGallery(f"There is no gallery named {name!r}.")
    gallery_id, revision, active_generation_id, canary_id, canary, bake_id, bake_share, previous_id = row
    return Serving(
        gallery_id,
        revision,
        active_generation_id,
        None if canary_id is None else Trial(canary_id, canary),
        None if bake_id is None else Bake(bake_id, bake_share, previous_id),
    )


def list_galleries(session: Session, after_id: int, limit: int) -> list[GalleryDetails]:
    """Return up to `limit` galleries with ids above `after_id`, by id."""
    query = _WITH_VERSION.where(Gallery.id > after_id, own_galleries()).order_by(Gallery.id).limit(limit)
    return [GalleryDetails(*row) for row in session.execute(query)]


def describe_gallery(session: Session, gallery: Gallery) -> GalleryDetails:
    """Return the gallery's details."""
    return GalleryDetails(*session.execute(_WITH_VERSION.where(Gallery.id == gallery.id)).one())


def change_gallery(
    session: Session, name: str, index: IndexOption | None, task: Task | None, probe_images: int | None = None
) -> Gallery:
    """Ask for another kind of index, which a worker soon builds if there is a file of another kind; say that the
    gallery is searched for something else, which the next upgrade keeps to; or how many probe images are kept of what
    is ingested from now on. None leaves what there is.

    Raises `UnknownGallery` (404).
    """
    gallery = lock_gallery(session, get_gallery(session, name).id)
    before = _settings(gallery)
    gallery.index = index or gallery.index
    gallery.task = task or gallery.task
    if probe_images is not None:
        want_probe_images(session, gallery, probe_images)
    session.flush()
    if _settings(gallery) != before:
        record(session, Act.GALLERY_CHANGED, Subject("gallery", name), before=before, after=_settings(gallery))
    return gallery


def _settings(gallery: Gallery) -> dict[str, Any]:
    """Return what a user may change of a gallery."""
    return {"index": gallery.index, "task": gallery.task, "probe_images": gallery.probe_images}


def lock_gallery(session: Session, gallery_id: int, changes: int = 0) -> Gallery:
    """Take the gallery's row until the transaction ends and advance its revision by `changes`.

    Every write takes this lock before it touches rows, so revisions become visible in the order they were given.
    Raises `UnknownGallery` when the gallery was deleted meanwhile.
    """
    statement = (
        update(Gallery)
        .where(Gallery.id == gallery_id)
        .values(revision=Gallery.revision + changes)
        .returning(Gallery)
        .execution_options(populate_existing=True)
    )
    gallery = session.scalar(statement)
    if gallery is None:
        raise UnknownGallery("The gallery was deleted meanwhile.")
    return gallery


def find_open_upgrade(session: Session, gallery_id: int) -> Upgrade | None:
    """Return the gallery's open upgrade; a unique index allows one at most."""
    return session.scalar(select(Upgrade).where(Upgrade.gallery_id == gallery_id, Upgrade.state.in_(OPEN)))


def delete_gallery(session: Session, name: str) -> int:
    """Delete a gallery with its items and tables; return its id.

    Raises `UnknownGallery` (404), and `GalleryBusy` (409) while an upgrade or a backfill of it is open.
    """
    gallery = lock_gallery(session, get_gallery(session, name).id)
    check_not_busy(session, gallery)
    gallery.active_generation_id = None
    session.flush()  # the generations cannot go while the gallery points at one
    for generation_id in session.scalars(select(Generation.id).where(Generation.gallery_id == gallery.id)):
        drop_embeddings_table(session, generation_id)
    record(session, Act.GALLERY_DELETED, Subject("gallery", name), before={"items": gallery.items})
    session.execute(delete(Gallery).where(Gallery.id == gallery.id))
    return gallery.id


def check_not_busy(session: Session, gallery: Gallery) -> None:
    """Raise `GalleryBusy` (409) while an upgrade or a backfill of a gallery is open."""
    upgrade = find_open_upgrade(session, gallery.id)
    if upgrade is not None:
        raise GalleryBusy(f"Upgrade {upgrade.id} of gallery {gallery.name!r} is open; cancel it first.")

    backfills = select(Backfill.id).where(Backfill.gallery_id == gallery.id, Backfill.state.in_(OPEN_BACKFILL))
    backfill_id = session.scalar(backfills.limit(1))
    if backfill_id is not None:
        raise GalleryBusy(f"Backfill {backfill_id} of gallery {gallery.name!r} is open; cancel it first.")


def remove_gallery(database: Database, blobs: BlobStore, replicas: Replicas, name: str) -> None:
    """Delete a gallery as `delete_gallery` does, then let this process's replicas forget it, and remove the images of
    its queries that no other row refers to."""
    with database.session_scope() as session:
        digests = _query_images(session, name)
        gallery_id = delete_gallery(session, name)
    replicas.forget(gallery_id)
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)


def _query_images(session: Session, name: str) -> Sequence[str]:
    """Return the digests of a gallery's query images, once whoever is adding some has done so."""
    gallery = session.scalars(select(Gallery).where(gallery_named(name)).with_for_update()).one_or_none()
    if gallery is None:
        return []
    query = select(JudgedQuery.image_digest).join(QuerySet).where(QuerySet.gallery_id == gallery.id)
    return [digest for digest in session.scalars(query) if digest is not None]


def gallery_names(session: Session) -> dict[int, str]:
    """Return the names of the galleries that whoever is served may see, by their ids."""
    query = select(Gallery.id, Gallery.name).where(own_galleries())
    return {row.id: row.name for row in session.execute(query)}
