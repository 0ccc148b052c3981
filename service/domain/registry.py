"""Model versions and transformations: registering, finding and deleting them.

Artifacts are tried before anything is stored, so a refused one leaves nothing behind. Blobs are kept under their digest
and shared; the blobs of a deleted row are removed when nothing refers to them any more. A registration that fails after
its blobs were stored (it lost the race for a name, or the process died) leaves blobs that no row names, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, any_, literal, or_, select, union
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from service.advisory_locks import AdvisoryLock, hold
from service.blobs import BlobStore
from service.db import Database
from service.errors import Conflict, NotFound, Unprocessable
from service.networks.encoders import check_encoder, check_preprocessing
from service.networks.transformations import check_transformation_network
from service.settings import Settings
from service.tables import Gallery, Generation, JudgedQuery, ModelVersion, Transformation, Upgrade


class UnknownVersion(NotFound):
    """No model version has this name."""


class VersionExists(Conflict):
    """The name is taken."""


class VersionInUse(Conflict):
    """A gallery or a transformation refers to the version."""


class UnknownTransformation(NotFound):
    """No transformation has this id."""


class TransformationInUse(Conflict):
    """A generation or an upgrade refers to the transformation."""


class InvalidRegistration(Unprocessable):
    """The parts of the registration do not fit together."""


@dataclass(frozen=True)
class VersionSpec:
    """What a model version declares about its networks."""

    embedding_dim: int
    side_information_dim: int | None
    normalize: bool
    preprocessing: dict[str, Any]


@dataclass(frozen=True)
class TransformationDetails:
    """A transformation with the names of the versions that it leads from and to."""

    transformation: Transformation
    from_version: str
    to_version: str


@dataclass(frozen=True)
class NetworkStore:
    """Where networks are registered: rows in the session's transaction, bytes in `blobs`; `settings` say how they are
    tried."""

    session: Session
    blobs: BlobStore
    settings: Settings


# Every column that names a blob by its digest.
_BLOB_COLUMNS = (
    ModelVersion.embedding_model_digest,
    ModelVersion.side_information_model_digest,
    Transformation.h_digest,
    Transformation.g_digest,
    JudgedQuery.image_digest,
)
_From, _To = aliased(ModelVersion), aliased(ModelVersion)
_WITH_VERSIONS = (
    select(Transformation, _From.name, _To.name)
    .join(_From, _From.id == Transformation.from_version_id)
    .join(_To, _To.id == Transformation.to_version_id)
)


def register_model_version(
    store: NetworkStore, name: str, spec: VersionSpec, embedding_model: bytes, side_information_model: bytes | None
) -> ModelVersion:
    """Try both networks, store them, and return the new version.

    Raises `InvalidRegistration` and `InvalidArtifact` (422), `VersionExists` (409).
    """
    session, blobs = store.session, store.blobs
    if (spec.side_information_dim is None) != (side_information_model is None):
        raise InvalidRegistration("side_information_dim and the file side_information_model are given both or neither.")
    if session.scalar(select(ModelVersion.id).where(ModelVersion.name == name)) is not None:
        raise VersionExists(f"A model version named {name!r} exists.")

    check_preprocessing(spec.preprocessing)
    embedding_kind = check_encoder(embedding_model, spec.embedding_dim, spec.preprocessing, store.settings)
    side_kind = None
    if side_information_model is not None and spec.side_information_dim is not None:
        side_kind = check_encoder(side_information_model, spec.side_information_dim, spec.preprocessing, store.settings)

    hold(session, AdvisoryLock.BLOBS, shared=True)
    version = ModelVersion(
        name=name,
        embedding_dim=spec.embedding_dim,
        side_information_dim=spec.side_information_dim,
        normalize=spec.normalize,
        preprocessing=spec.preprocessing,
        embedding_model_digest=blobs.put(embedding_model),
        embedding_model_kind=embedding_kind,
        side_information_model_digest=None if side_information_model is None else blobs.put(side_information_model),
        side_information_model_kind=side_kind,
    )

    session.add(version)
    try:
        session.flush()  # the unique name decides between two requests at once
    except IntegrityError as error:
        raise VersionExists(f"A model version named {name!r} exists.") from error
    session.refresh(version)
    return version


def get_version(session: Session, name: str) -> ModelVersion:
    """Return the version, or raise `UnknownVersion` (404)."""
    version = session.scalar(select(ModelVersion).where(ModelVersion.name == name))
    if version is None:
        raise UnknownVersion(f"There is no model version named {name!r}.")
    return version


def list_versions(session: Session, after_id: int, limit: int) -> list[ModelVersion]:
    """Return up to `limit` versions with ids above `after_id`, by id."""
    query = select(ModelVersion).where(ModelVersion.id > after_id).order_by(ModelVersion.id).limit(limit)
    return list(session.scalars(query))


def delete_version(session: Session, name: str) -> list[str]:
    """Delete a version that nothing refers to, and return the digests that it held.

    Raises `UnknownVersion` (404), and `VersionInUse` (409) naming what refers to it, where that is known.
    """
    version = get_version(session, name)
    gallery = session.scalar(
        select(Gallery.name)
        .join(Generation, Generation.gallery_id == Gallery.id)
        .where(Generation.model_version_id == version.id)
    )
    if gallery is not None:
        raise VersionInUse(f"Gallery {gallery!r} has or had a generation under model version {name!r}.")
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
    return [digest for digest in digests if digest is not None]


def register_transformation(
    store: NetworkStore, from_version: str, to_version: str, h: bytes, g: bytes | None
) -> Transformation:
    """Try h and g on the versions' dimensions, store them, and return the new transformation.

    Raises `UnknownVersion` (404), `InvalidRegistration` and `InvalidArtifact` (422).
    """
    session, blobs = store.session, store.blobs
    before, after = get_version(session, from_version), get_version(session, to_version)
    if before.id == after.id:
        raise InvalidRegistration("A transformation leads from one model version to another.")
    if g is not None and after.side_information_dim is None:
        raise InvalidRegistration(f"Model version {to_version!r} has no side-information, so there is no g to it.")

    architecture = {"h": check_transformation_network(h, before, after.embedding_dim, store.settings)}
    if g is not None and after.side_information_dim is not None:
        architecture["g"] = check_transformation_network(g, before, after.side_information_dim, store.settings)

    hold(session, AdvisoryLock.BLOBS, shared=True)
    transformation = Transformation(
        from_version_id=before.id,
        to_version_id=after.id,
        h_digest=blobs.put(h),
        h_kind=architecture["h"]["kind"],
        g_digest=None if g is None else blobs.put(g),
        g_kind=None if g is None else architecture["g"]["kind"],
        architecture=architecture,
    )

    session.add(transformation)
    try:
        session.flush()  # its id is the answer
    except IntegrityError as error:
        raise UnknownVersion(f"Model version {from_version!r} or {to_version!r} has just been deleted.") from error
    session.refresh(transformation)
    return transformation


def get_transformation(session: Session, transformation_id: int) -> Transformation:
    """Return the transformation, or raise `UnknownTransformation` (404)."""
    transformation = session.get(Transformation, transformation_id)
    if transformation is None:
        raise UnknownTransformation(f"There is no transformation {transformation_id}.")
    return transformation


def list_transformations(session: Session, after_id: int, limit: int) -> list[TransformationDetails]:
    """Return up to `limit` transformations with ids above `after_id`, by id."""
    query = _WITH_VERSIONS.where(Transformation.id > after_id).order_by(Transformation.id).limit(limit)
    return [TransformationDetails(*row) for row in session.execute(query)]


def describe_transformation(session: Session, transformation: Transformation) -> TransformationDetails:
    """Return the transformation's details."""
    return TransformationDetails(*session.execute(_WITH_VERSIONS.where(Transformation.id == transformation.id)).one())


def delete_transformation(session: Session, transformation_id: int) -> list[str]:
    """Delete a transformation that no generation or upgrade used, and return the digests that it held.

    Raises `UnknownTransformation` (404), and `TransformationInUse` (409) naming what uses it, where that is known.
    """
    transformation = get_transformation(session, transformation_id)
    used = session.scalar(select(Upgrade.id).where(Upgrade.legs.contains([{"transformations": [transformation_id]}])))
    if used is not None:
        raise TransformationInUse(f"Upgrade {used} uses transformation {transformation_id}.")

    digests = [transformation.h_digest, transformation.g_digest]
    session.delete(transformation)
    try:
        session.flush()  # an upgrade planned at this moment keeps it
    except IntegrityError as error:
        raise TransformationInUse(f"Transformation {transformation_id} has just been put to use.") from error
    return [digest for digest in digests if digest is not None]


def remove_version(database: Database, blobs: BlobStore, name: str) -> None:
    """Delete a version as `delete_version` does, and then its blobs that no other row refers to."""
    with database.session_scope() as session:
        digests = delete_version(session, name)
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)


def remove_transformation(database: Database, blobs: BlobStore, transformation_id: int) -> None:
    """Delete a transformation as `delete_transformation` does, and then its blobs that no other row refers to."""
    with database.session_scope() as session:
        digests = delete_transformation(session, transformation_id)
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)


def delete_unreferenced_blobs(session: Session, blobs: BlobStore, digests: Sequence[str]) -> None:
    """Remove blobs that no row refers to. Call it after the deletion has committed: a crash before leaves a blob that
    nothing names, never a row without its blob."""
    hold(session, AdvisoryLock.BLOBS)
    wanted = any_(literal(list(digests), ARRAY(Text)))
    referenced = set(session.scalars(union(*(select(column).where(column == wanted) for column in _BLOB_COLUMNS))))
    for digest in set(digests) - referenced:
        blobs.delete(digest)
