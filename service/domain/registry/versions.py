"""Model versions: finding, listing and deleting them. How they come is in `registration`."""

from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.access.tenancy import check_may_change, names_gallery, own_or_shared, version_named
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.errors import Conflict, NotFound
from service.networks.encoders import Encoders, VersionEncoder, VersionWithoutNetworks
from service.tables import Gallery, Generation, ModelVersion, Transformation


class UnknownVersion(NotFound):
    """No model version has this name."""


class VersionExists(Conflict):
    """The name is taken."""


class VersionInUse(Conflict):
    """A gallery or a transformation refers to the version."""


class VersionHasNetworks(Conflict):
    """The version has networks already; they stay as they are."""


def get_version(session: Session, name: str) -> ModelVersion:
    """Return the version, or raise `UnknownVersion` (404)."""
    version = session.scalar(select(ModelVersion).where(version_named(name)))
    if version is None:
        raise UnknownVersion(f"There is no model version named {name!r}.")
    return version


def encoder_of(database: Database, encoders: Encoders, version: ModelVersion) -> VersionEncoder:
    """Return a version's encoder, also where its networks were added since its row was read.

    Raises `VersionWithoutNetworks`, `BlobMissing`, `BlobDamaged` and `ArtifactUnusable` (409).
    """
    try:
        return encoders.get(version)
    except VersionWithoutNetworks:
        with database.session_scope() as session:
            return encoders.get(session.get_one(ModelVersion, version.id))


def list_versions(session: Session, after_id: int, limit: int) -> list[ModelVersion]:
    """Return up to `limit` versions with ids above `after_id`, by id."""
    query = select(ModelVersion).where(ModelVersion.id > after_id, own_or_shared(ModelVersion))
    return list(session.scalars(query.order_by(ModelVersion.id).limit(limit)))


def delete_version(session: Session, name: str) -> list[str]:
    """Delete a version that nothing refers to, and return the digests that it held.

    Raises `UnknownVersion` (404), `SharedByAll` (403), and `VersionInUse` (409) naming what refers to it, where that
    is known.
    """
    version = get_version(session, name)
    check_may_change(version)
    gallery = session.scalar(
        select(Gallery.name)
        .join(Generation, Generation.gallery_id == Gallery.id)
        .where(Generation.model_version_id == version.id)
    )
    if gallery is not None:
        named = f"Gallery {gallery!r}" if names_gallery(gallery) else "A gallery that the key is not for"
        raise VersionInUse(f"{named} has or had a generation under model version {name!r}.")
    transformation = session.scalar(
        select(Transformation.id).where(
            or_(Transformation.from_version_id == version.id, Transformation.to_version_id == version.id)
        )
    )
    if transformation is not None:
        raise VersionInUse(f"Transformation {transformation} is from or to model version {name!r}.")

    digests = [version.embedding_model_digest, version.side_information_model_digest]
    session.delete(version)
    try:
        session.flush()  # a gallery or transformation made at this moment keeps the version
    except IntegrityError as error:
        raise VersionInUse(f"Model version {name!r} has just been put to use.") from error
    record(session, Act.VERSION_DELETED, Subject("model_version", name), before=digests_of_version(version))
    return [digest for digest in digests if digest is not None]


def remove_version(database: Database, blobs: BlobStore, name: str) -> None:
    """Delete a version as `delete_version` does, and then its blobs that no other row refers to."""
    with database.session_scope() as session:
        digests = delete_version(session, name)
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)


def digests_of_version(version: ModelVersion) -> dict[str, Any]:
    return {
        "embedding_model": version.embedding_model_digest,
        "side_information_model": version.side_information_model_digest,
    }
