"""Transformations: finding, listing and deleting them, and which one is the default between its versions. How they come
is in `registration`."""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from service.access.tenancy import check_may_change, own_or_shared
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.choice import unsoundness
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.errors import Conflict, NotFound
from service.tables import ModelVersion, Transformation, Upgrade


class UnknownTransformation(NotFound):
    """No transformation has this id."""


class TransformationInUse(Conflict):
    """A generation or an upgrade refers to the transformation."""


class UnsoundDefault(Conflict):
    """By its own metrics the transformation is not to be taken unless it is named."""


@dataclass(frozen=True)
class TransformationDetails:
    """A transformation with the names of the versions that it leads from and to."""

    transformation: Transformation
    from_version: str
    to_version: str


_From, _To = aliased(ModelVersion), aliased(ModelVersion)
_WITH_VERSIONS = (
    select(Transformation, _From.name, _To.name)
    .join(_From, _From.id == Transformation.from_version_id)
    .join(_To, _To.id == Transformation.to_version_id)
)


def get_transformation(session: Session, transformation_id: int) -> Transformation:
    """Return the transformation, or raise `UnknownTransformation` (404)."""
    this = Transformation.id == transformation_id
    transformation = session.scalar(select(Transformation).where(this, own_or_shared(Transformation)))
    if transformation is None:
        raise UnknownTransformation(f"There is no transformation {transformation_id}.")
    return transformation


def list_transformations(session: Session, after_id: int, limit: int) -> list[TransformationDetails]:
    """Return up to `limit` transformations with ids above `after_id`, by id."""
    query = _WITH_VERSIONS.where(Transformation.id > after_id, own_or_shared(Transformation))
    found = session.execute(query.order_by(Transformation.id).limit(limit))
    return [TransformationDetails(*row) for row in found]


def describe_transformation(session: Session, transformation: Transformation) -> TransformationDetails:
    """Return the transformation's details."""
    return TransformationDetails(*session.execute(_WITH_VERSIONS.where(Transformation.id == transformation.id)).one())


def set_default(session: Session, transformation_id: int, default: bool) -> Transformation:
    """Make a transformation the default between its versions, in the place of another of its tenant's, or no longer so.

    Raises `UnknownTransformation` (404), `SharedByAll` (403), and `UnsoundDefault` (409) for one that its own metrics
    speak against.
    """
    transformation = get_transformation(session, transformation_id)
    check_may_change(transformation)
    if default and (why := unsoundness(transformation)) is not None:
        raise UnsoundDefault(
            f"Transformation {transformation_id} {why}: it can be named for one upgrade, and is no default."
        )
    between = (
        Transformation.tenant.is_not_distinct_from(transformation.tenant),
        Transformation.from_version_id == transformation.from_version_id,
        Transformation.to_version_id == transformation.to_version_id,
    )
    before, after = {"default": transformation.is_default}, {"default": default}
    # In the order of their ids, so that two requests at once wait for each other.
    session.execute(select(Transformation.id).where(*between).order_by(Transformation.id).with_for_update())
    if default:
        session.execute(update(Transformation).where(*between).values(is_default=False))
    session.execute(update(Transformation).where(Transformation.id == transformation_id).values(is_default=default))
    subject = Subject("transformation", transformation_id)
    record(session, Act.TRANSFORMATION_CHANGED, subject, before=before, after=after)
    session.expire_all()
    return get_transformation(session, transformation_id)


def delete_transformation(session: Session, transformation_id: int) -> list[str]:
    """Delete a transformation that no generation or upgrade used, and return the digests that it held.

    Raises `UnknownTransformation` (404), `SharedByAll` (403), and `TransformationInUse` (409) naming what uses it,
    where that is known.
    """
    transformation = get_transformation(session, transformation_id)
    check_may_change(transformation)
    used = session.scalar(select(Upgrade.id).where(Upgrade.legs.contains([{"transformations": [transformation_id]}])))
    if used is not None:
        raise TransformationInUse(f"Upgrade {used} uses transformation {transformation_id}.")

    digests = [transformation.h_digest, transformation.g_digest]
    session.delete(transformation)
    try:
        session.flush()  # an upgrade planned at this moment keeps it
    except IntegrityError as error:
        raise TransformationInUse(f"Transformation {transformation_id} has just been put to use.") from error
    before = {"h": transformation.h_digest, "g": transformation.g_digest}
    record(session, Act.TRANSFORMATION_DELETED, Subject("transformation", transformation_id), before=before)
    return [digest for digest in digests if digest is not None]


def remove_transformation(database: Database, blobs: BlobStore, transformation_id: int) -> None:
    """Delete a transformation as `delete_transformation` does, and then its blobs that no other row refers to."""
    with database.session_scope() as session:
        digests = delete_transformation(session, transformation_id)
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)
