"""Registering model versions and transformations, and adding networks to a version.

Artifacts are tried before anything is stored, so a refused one leaves nothing behind. A registration that fails after
its blobs were stored (it lost the race for a name, or the process died) leaves blobs that no row names, and no more.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Null, null, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import identity
from service.access.tenancy import check_may_change, check_may_share, version_named
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.registry.transformations import TransformationDetails, describe_transformation
from service.domain.registry.versions import (
    UnknownVersion,
    VersionExists,
    VersionHasNetworks,
    digests_of_version,
    get_version,
)
from service.errors import Unprocessable
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
from service.tables import ModelVersion, Transformation


class InvalidRegistration(Unprocessable):
    """The parts of the registration do not fit together."""


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
class NetworkStore:
    """Where networks are registered: rows in the session's transaction, bytes in `blobs`; `settings` say how they are
    tried."""

    session: Session
    blobs: BlobStore
    settings: Settings


@dataclass(frozen=True)
class _NewTransformation:
    """h and g, which may be absent, between two versions."""

    before: ModelVersion
    after: ModelVersion
    h: bytes
    g: bytes | None

    @classmethod
    def between(cls, session: Session, from_version: str, to_version: str, h: bytes, g: bytes | None) -> Self:
        """Raises `UnknownVersion` (404) and `InvalidRegistration` (422)."""
        before, after = get_version(session, from_version), get_version(session, to_version)
        if before.id == after.id:
            raise InvalidRegistration("A transformation leads from one model version to another.")
        if g is not None and after.side_information_dim is None:
            raise InvalidRegistration(f"Model version {to_version!r} has no side-information, so there is no g to it.")
        return cls(before, after, h, g)

    def tried(self, forms: TransformationForms, settings: Settings) -> dict[str, Any]:
        """Return what is known of h and g after their trial, by their names."""
        before, dim, side_dim = self.before, self.after.embedding_dim, self.after.side_information_dim
        architecture = {"h": check_transformation_network("h", self.h, before, dim, forms.h, settings)}
        if self.g is not None and side_dim is not None:
            architecture["g"] = check_transformation_network("g", self.g, before, side_dim, forms.g, settings)
        return architecture

    def store(
        self, store: NetworkStore, architecture: dict[str, Any], tenant: str | Null, reason: str | None = None
    ) -> Transformation:
        """Store h and g, and the row that names them. Raises `UnknownVersion` (404) where a version has just gone."""
        session, blobs, before, after = store.session, store.blobs, self.before, self.after
        hold(session, AdvisoryLock.BLOBS, shared=True)
        transformation = Transformation(
            tenant=tenant,
            from_version_id=before.id,
            to_version_id=after.id,
            h_digest=blobs.put(self.h),
            h_kind=architecture["h"]["kind"],
            g_digest=None if self.g is None else blobs.put(self.g),
            g_kind=None if self.g is None else architecture["g"]["kind"],
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
            record(session, Act.VERSION_REGISTERED, Subject("model_version", name), after=digests_of_version(version))
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
            after = digests_of_version(version)
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
            new = _NewTransformation.between(session, from_version, to_version, h, g)
        if shared and (new.before.tenant, new.after.tenant) != (None, None):
            raise InvalidRegistration("A transformation is shared by all between model versions that are.")
        tenant = _tenant_of(shared)
        architecture = new.tried(forms, self.settings)
        with self.database.session_scope() as session:
            store = NetworkStore(session, self.blobs, self.settings)
            return describe_transformation(session, new.store(store, architecture, tenant))


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


def register_transformation(
    store: NetworkStore, from_version: str, to_version: str, h: bytes, g: bytes | None, reason: str
) -> Transformation:
    """Try h and g of our own on the versions' dimensions, and store them, in the session's transaction; `reason` says
    in the audit where they come from.

    Raises as `Registration.of_transformation`.
    """
    new = _NewTransformation.between(store.session, from_version, to_version, h, g)
    architecture = new.tried(AS_THE_FILES_SAY, store.settings)
    return new.store(store, architecture, _tenant_of(shared=False), reason)
