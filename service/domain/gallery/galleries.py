"""Galleries: creating, finding, deleting, and the row lock that orders every write to one."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.blobs import BlobStore
from service.db import Database
from service.domain import registry
from service.domain.gallery.generations import add_generation
from service.domain.generation_stage import GenerationStage
from service.domain.upgrade_state import OPEN
from service.errors import Conflict, NotFound
from service.index.protocol import IndexOption, Metric
from service.index.replica import Replicas
from service.tables import (
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
_SERVING = text("SELECT id, active_generation_id FROM galleries WHERE name = :name")


class UnknownGallery(NotFound):
    """No gallery has this name."""


class GalleryExists(Conflict):
    """The name is taken."""


class GalleryBusy(Conflict):
    """An open upgrade needs the gallery."""


@dataclass(frozen=True)
class GalleryDetails:
    """A gallery with what its active generation is made of."""

    gallery: Gallery
    generation: Generation
    version: ModelVersion


def create_gallery(
    session: Session,
    name: str,
    model_version: str,
    metric: Metric,
    dtype: StoredDtype,
    thumbnails: bool,
    index: IndexOption = "auto",
    task: Task = "instance",
) -> Gallery:
    """Create an empty gallery whose first generation is under `model_version`.

    Raises `UnknownVersion` (404) and `GalleryExists` (409).
    """
    version = registry.get_version(session, model_version)
    gallery = Gallery(name=name, metric=metric, dtype=dtype, thumbnails=thumbnails, index=index, task=task, revision=0)
    session.add(gallery)
    try:
        session.flush()  # the unique name decides between two requests at once
    except IntegrityError as error:
        raise GalleryExists(f"A gallery named {name!r} exists.") from error

    generation = add_generation(
        session,
        gallery,
        version,
        state=GenerationStage.COMPLETE,
        has_side_information=version.side_information_dim is not None,
    )
    gallery.active_generation_id = generation.id
    return gallery


def get_gallery(session: Session, name: str) -> Gallery:
    """Return the gallery, or raise `UnknownGallery` (404)."""
    gallery = session.scalar(select(Gallery).where(Gallery.name == name))
    if gallery is None:
        raise UnknownGallery(f"There is no gallery named {name!r}.")
    return gallery


def find_serving(connection: Connection, name: str) -> tuple[int, int]:
    """Return the ids of the gallery and of its active generation, or raise `UnknownGallery` (404).

    For searches: to load the gallery's row as an object takes twice as long.
    """
    row = connection.execute(_SERVING, {"name": name}).one_or_none()
    if row is None:
        raise UnknownGallery(f"There is no gallery named {name!r}.")
    return row.id, row.active_generation_id


def list_galleries(session: Session, after_id: int, limit: int) -> list[GalleryDetails]:
    """Return up to `limit` galleries with ids above `after_id`, by id."""
    query = _WITH_VERSION.where(Gallery.id > after_id).order_by(Gallery.id).limit(limit)
    return [GalleryDetails(*row) for row in session.execute(query)]


def describe_gallery(session: Session, gallery: Gallery) -> GalleryDetails:
    """Return the gallery's details."""
    return GalleryDetails(*session.execute(_WITH_VERSION.where(Gallery.id == gallery.id)).one())


def change_gallery(session: Session, name: str, index: IndexOption | None, task: Task | None) -> Gallery:
    """Ask for another kind of index, which a worker soon builds if there is a file of another kind, or say that the
    gallery is searched for something else, which the next upgrade keeps to. None leaves what there is.

    Raises `UnknownGallery` (404).
    """
    gallery = lock_gallery(session, get_gallery(session, name).id)
    gallery.index = index or gallery.index
    gallery.task = task or gallery.task
    session.flush()
    return gallery


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

    Raises `UnknownGallery` (404), and `GalleryBusy` (409) while an upgrade of it is open.
    """
    gallery = lock_gallery(session, get_gallery(session, name).id)
    upgrade = find_open_upgrade(session, gallery.id)
    if upgrade is not None:
        raise GalleryBusy(f"Upgrade {upgrade.id} of gallery {name!r} is open; cancel it first.")

    gallery.active_generation_id = None
    session.flush()  # the generations cannot go while the gallery points at one
    for generation_id in session.scalars(select(Generation.id).where(Generation.gallery_id == gallery.id)):
        drop_embeddings_table(session, generation_id)
    session.execute(delete(Gallery).where(Gallery.id == gallery.id))
    return gallery.id


def remove_gallery(database: Database, blobs: BlobStore, replicas: Replicas, name: str) -> None:
    """Delete a gallery as `delete_gallery` does, then let this process's replicas forget it, and remove the images of
    its queries that no other row refers to."""
    with database.session_scope() as session:
        digests = _query_images(session, name)
        gallery_id = delete_gallery(session, name)
    replicas.forget(gallery_id)
    with database.session_scope() as session:
        registry.delete_unreferenced_blobs(session, blobs, digests)


def _query_images(session: Session, name: str) -> Sequence[str]:
    """Return the digests of a gallery's query images, once whoever is adding some has done so."""
    gallery = session.scalars(select(Gallery).where(Gallery.name == name).with_for_update()).one_or_none()
    if gallery is None:
        return []
    query = select(JudgedQuery.image_digest).join(QuerySet).where(QuerySet.gallery_id == gallery.id)
    return [digest for digest in session.scalars(query) if digest is not None]


def gallery_names(session: Session) -> dict[int, str]:
    """Return every gallery's name by its id."""
    return {row.id: row.name for row in session.execute(select(Gallery.id, Gallery.name))}
