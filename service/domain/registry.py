"""Model versions and transformations: registering, finding and deleting them, and adding networks to a version.

Artifacts are tried before anything is stored, so a refused one leaves nothing behind. Blobs are kept under their digest
and shared; the blobs of a deleted row are removed when nothing refers to them any more. A registration that fails after
its blobs were stored (it lost the race for a name, or the process died) leaves blobs that no row names, and no more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Null, Text, any_, literal, null, or_, select, union, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from service import identity
from service.access.tenancy import check_may_change, check_may_share, names_gallery, own_or_shared, version_named
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.choice import unsoundness
from service.errors import Conflict, NotFound, Unprocessable
from service.networks.encoders import Encoders, VersionEncoder, VersionWithoutNetworks
from service.networks.trials import (
    AS_THE_FILES_SAY,
    DeclaredEncoders,
    TransformationForms,
    TriedEncoder,
    check_embedding_model,
    check_side_information_model,
    check_transformation_network,
    settle_preprocessing,
)
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


class UnsoundDefault(Conflict):
    """By its own metrics the transformation is not to be taken unless it is named."""


class InvalidRegistration(Unprocessable):
    """The parts of the registration do not fit together."""


class VersionHasNetworks(Conflict):
    """The version has networks already; they stay as they are."""


@dataclass(frozen=True)
class VersionSpec:
    """What a model version declares: the dimensions of its vectors, whether its embeddings are brought to unit norm,
    and how its networks take images; None: it says nothing of networks."""

    embedding_dim: int
    side_information_dim: int | None
    normalize: bool
    encoders: DeclaredEncoders | None


@dataclass(frozen=True)
class VersionNetworks:
    """Artifacts of φ and ψ, which may be absent."""

    embedding_model: bytes
    side_information_model: bytes | None


@dataclass(frozen=True)
class _TriedNetworks:
    """φ and ψ that can be used, and how images are given to them."""

    networks: VersionNetworks
    preprocessing: dict[str, Any]
    phi: TriedEncoder
    psi: TriedEncoder | None

    def store(self, version: ModelVersion, blobs: BlobStore) -> None:
        """Store the artifacts, and name them in the version's row; the lock of blobs is held."""
        version.preprocessing = self.preprocessing
        version.embedding_model_digest = blobs.put(self.networks.embedding_model)
        version.embedding_model_kind = self.phi.kind
        version.embedding_model_form = self.phi.form.to_json()
        if self.psi is not None and self.networks.side_information_model is not None:
            version.side_information_model_digest = blobs.put(self.networks.side_information_model)
            version.side_information_model_kind = self.psi.kind
            version.side_information_model_form = self.psi.form.to_json()


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


@dataclass(frozen=True)
class Registration:
    """What registrations need, made for one: where networks are stored, and how they are tried. No connection is held
    while a network is tried, which may take as long as it may take."""

    database: Database
    blobs: BlobStore
    settings: Settings

    def of_version(
        self, name: str, spec: VersionSpec, networks: VersionNetworks | None, *, shared: bool = False
    ) -> ModelVersion:
        """Try φ and ψ, store them, and return the new version, of the tenant or `shared` by all. Without `networks` it
        is of vectors alone, until they are added.

        Raises `SharedByAll` (403), `InvalidRegistration` and `InvalidArtifact` (422), `VersionExists` (409) and
        `TooManyTrials` (429).
        """
        if networks is None and spec.encoders is not None:
            raise InvalidRegistration(
                "The spec says how networks take images, but there is no file embedding_model. A version without"
                " networks has a spec of embedding_dim, side_information_dim? and normalize? alone."
            )
        with self.database.session_scope() as session:
            _refuse_taken_name(session, name, shared)
        tried = None if networks is None else self._tried(spec, networks)

        with self.database.session_scope() as session:
            hold(session, AdvisoryLock.VERSION_NAMES)
            _refuse_taken_name(session, name, shared)
            hold(session, AdvisoryLock.BLOBS, shared=True)
            version = ModelVersion(
                tenant=_tenant_of(shared),
                name=name,
                embedding_dim=spec.embedding_dim,
                side_information_dim=spec.side_information_dim,
                normalize=spec.normalize,
            )
            if tried is not None:
                tried.store(version, self.blobs)
            session.add(version)
            session.flush()  # `created_at` is in the answer
            record(session, Act.VERSION_REGISTERED, Subject("model_version", name), after=_digests_of_version(version))
            session.refresh(version)
            return version

    def add_networks(self, name: str, spec: VersionSpec, networks: VersionNetworks) -> ModelVersion:
        """Try φ and ψ and give them to a version without networks, of which the spec says what the version says.

        Raises `UnknownVersion` (404), `SharedByAll` (403), `VersionHasNetworks` (409), `InvalidRegistration` and
        `InvalidArtifact` (422) and `TooManyTrials` (429).
        """
        with self.database.session_scope() as session:
            _check_takes_networks(get_version(session, name), spec)
        tried = self._tried(spec, networks)

        with self.database.session_scope() as session:
            # Whoever adds networks at the same time, or deletes the version, waits, or is waited for.
            session.execute(select(ModelVersion.id).where(version_named(name)).with_for_update())
            version = get_version(session, name)
            _check_takes_networks(version, spec)
            hold(session, AdvisoryLock.BLOBS, shared=True)
            tried.store(version, self.blobs)
            session.flush()
            after = _digests_of_version(version)
            record(session, Act.VERSION_NETWORKS_ADDED, Subject("model_version", name), after=after)
            return version

    def _tried(self, spec: VersionSpec, networks: VersionNetworks) -> _TriedNetworks:
        """Return φ and ψ after their trial. Raises `InvalidRegistration` and `InvalidArtifact` (422), and
        `TooManyTrials` (429)."""
        psi_file = networks.side_information_model
        if (spec.side_information_dim is None) != (psi_file is None):
            raise InvalidRegistration(
                "side_information_dim and the file side_information_model are given both or neither."
            )
        declared = spec.encoders
        if declared is None:
            raise InvalidRegistration("The spec says no preprocessing, by which the networks are given images.")
        preprocessing = settle_preprocessing(declared, networks.embedding_model)
        phi = check_embedding_model(networks.embedding_model, declared, preprocessing, self.settings)
        psi = None
        if psi_file is not None:
            psi = check_side_information_model(psi_file, declared, preprocessing, self.settings)
        settled = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
        return _TriedNetworks(networks, declared.preprocessing | settled, phi, psi)

    def of_transformation(
        self,
        from_version: str,
        to_version: str,
        h: bytes,
        g: bytes | None,
        forms: TransformationForms,
        *,
        shared: bool = False,
    ) -> TransformationDetails:
        """Try h and g on the versions' dimensions, store them, and return the new transformation, of the tenant or
        `shared` by all.

        Raises `SharedByAll` (403), `UnknownVersion` (404), `InvalidRegistration` and `InvalidArtifact` (422) and
        `TooManyTrials` (429).
        """
        with self.database.session_scope() as session:
            before, after = _versions_between(session, from_version, to_version, with_g=g is not None)
        if shared and (before.tenant, after.tenant) != (None, None):
            raise InvalidRegistration("A transformation is shared by all between model versions that are.")
        tenant = _tenant_of(shared)
        architecture = _tried(before, after, h, g, forms, self.settings)
        with self.database.session_scope() as session:
            store = NetworkStore(session, self.blobs, self.settings)
            return describe_transformation(session, _stored(store, before, after, h, g, architecture, tenant))


def _check_takes_networks(version: ModelVersion, spec: VersionSpec) -> None:
    """Raise `SharedByAll` (403), `VersionHasNetworks` (409), or `InvalidRegistration` (422) where the spec says another
    dimension or norm than the version."""
    check_may_change(version)
    if version.has_networks:
        raise VersionHasNetworks(f"Model version {version.name!r} has networks already; they stay as they are.")
    for field in ("embedding_dim", "side_information_dim", "normalize"):
        said, known = getattr(spec, field), getattr(version, field)
        if said != known:
            raise InvalidRegistration(
                f"The spec says {field} {json.dumps(said)}; model version {version.name!r} has {json.dumps(known)}."
            )


def _tenant_of(shared: bool) -> str | Null:
    """Return whose a new network is, as a row is given it: None would be the column's default. Raises `SharedByAll`
    (403) where it is to be all tenants', unless an operator says so."""
    if shared:
        check_may_share()
        return null()
    return identity.current.get().tenant


def _refuse_taken_name(session: Session, name: str, shared: bool) -> None:
    """Refuse a name that would mean two versions to somebody: one of the tenant's own, and one that is shared."""
    taken = ModelVersion.name == name if shared else version_named(name)
    if session.scalar(select(ModelVersion.id).where(taken).limit(1)) is not None:
        raise VersionExists(f"A model version named {name!r} exists.")


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
    record(session, Act.VERSION_DELETED, Subject("model_version", name), before=_digests_of_version(version))
    return [digest for digest in digests if digest is not None]


def _digests_of_version(version: ModelVersion) -> dict[str, Any]:
    return {
        "embedding_model": version.embedding_model_digest,
        "side_information_model": version.side_information_model_digest,
    }


def register_transformation(
    store: NetworkStore, from_version: str, to_version: str, h: bytes, g: bytes | None, reason: str
) -> Transformation:
    """Try h and g of our own on the versions' dimensions, and store them, in the session's transaction; `reason` says
    in the audit where they come from.

    Raises as `Registration.of_transformation`.
    """
    before, after = _versions_between(store.session, from_version, to_version, with_g=g is not None)
    architecture = _tried(before, after, h, g, AS_THE_FILES_SAY, store.settings)
    return _stored(store, before, after, h, g, architecture, _tenant_of(shared=False), reason)


def _versions_between(
    session: Session, from_version: str, to_version: str, *, with_g: bool
) -> tuple[ModelVersion, ModelVersion]:
    before, after = get_version(session, from_version), get_version(session, to_version)
    if before.id == after.id:
        raise InvalidRegistration("A transformation leads from one model version to another.")
    if with_g and after.side_information_dim is None:
        raise InvalidRegistration(f"Model version {to_version!r} has no side-information, so there is no g to it.")
    return before, after


def _tried(
    before: ModelVersion,
    after: ModelVersion,
    h: bytes,
    g: bytes | None,
    forms: TransformationForms,
    settings: Settings,
) -> dict[str, Any]:
    """Return what is known of h and g after their trial, by their names."""
    architecture = {"h": check_transformation_network("h", h, before, after.embedding_dim, forms.h, settings)}
    if g is not None and after.side_information_dim is not None:
        side_dim = after.side_information_dim
        architecture["g"] = check_transformation_network("g", g, before, side_dim, forms.g, settings)
    return architecture


def _stored(
    store: NetworkStore,
    before: ModelVersion,
    after: ModelVersion,
    h: bytes,
    g: bytes | None,
    architecture: dict[str, Any],
    tenant: str | Null,
    reason: str | None = None,
) -> Transformation:
    session, blobs = store.session, store.blobs
    hold(session, AdvisoryLock.BLOBS, shared=True)
    transformation = Transformation(
        tenant=tenant,
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
        raise UnknownVersion(f"Model version {before.name!r} or {after.name!r} has just been deleted.") from error
    digests = {"h": transformation.h_digest, "g": transformation.g_digest}
    registered = {"from_version": before.name, "to_version": after.name, **digests}
    subject = Subject("transformation", transformation.id)
    record(session, Act.TRANSFORMATION_REGISTERED, subject, after=registered, reason=reason)
    session.refresh(transformation)
    return transformation


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
