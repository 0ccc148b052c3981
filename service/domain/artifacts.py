"""Networks on their way out: what was registered, byte for byte, and our own transformations as ONNX."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from service.blobs import BlobStore
from service.db import Database
from service.domain.registry.transformations import get_transformation
from service.domain.registry.versions import get_version
from service.errors import GalleryError, NotFound
from service.networks.transformations import as_onnx
from service.tables import ModelVersion, NetworkKind

VersionPart = Literal["embedding_model", "side_information_model"]
TransformationPart = Literal["h", "g"]
ExportFormat = Literal["onnx", "safetensors"]


class NoArtifact(NotFound):
    """The version or the transformation has no such part."""


class OtherFormat(GalleryError):
    """The network is not to be had in the format that was asked for."""

    status_code = 406


@dataclass(frozen=True)
class Artifact:
    """A network as a file; `digest` is the SHA-256 of its bytes, in hex."""

    data: bytes
    kind: NetworkKind
    digest: str
    file_name: str


@dataclass(frozen=True)
class _Stored:
    """A registered network, and what an ONNX file of it says."""

    digest: str
    kind: NetworkKind
    about: dict[str, str]


def version_artifact(database: Database, blobs: BlobStore, name: str, part: VersionPart) -> Artifact:
    """Return a network of a model version as it was registered.

    Raises `UnknownVersion` and `NoArtifact` (404).
    """
    with database.session_scope() as session:
        version = get_version(session, name)
    digest: str | None = getattr(version, f"{part}_digest")
    kind: NetworkKind | None = getattr(version, f"{part}_kind")
    if digest is None or kind is None:
        none_yet = "" if version.has_networks else " yet: it is without networks, until some are added"
        raise NoArtifact(f"Model version {name!r} has no {part}{none_yet}.")
    return Artifact(blobs.get(digest), kind, digest, f"{name}.{part}.{kind}")


def transformation_artifact(
    database: Database,
    blobs: BlobStore,
    transformation_id: int,
    part: TransformationPart,
    wanted: ExportFormat | None = None,
) -> Artifact:
    """Return h or g as it was registered, or one of our own as ONNX.

    Raises `UnknownTransformation` and `NoArtifact` (404), `OtherFormat` (406), and `NotExportable` (409) for a network
    of ours that ONNX cannot hold.
    """
    with database.session_scope() as session:
        stored = _stored(session, transformation_id, part)
    name = f"transformation-{transformation_id}.{part}"
    if wanted is not None and wanted != stored.kind and (wanted, stored.kind) != ("onnx", "safetensors"):
        raise OtherFormat(
            f"{part} of transformation {transformation_id} was registered as {stored.kind} and comes out as that alone:"
            " leave `format` out. Only networks of our own, as safetensors, are written as ONNX too."
        )
    data = blobs.get(stored.digest)
    if wanted in (None, stored.kind):
        return Artifact(data, stored.kind, stored.digest, f"{name}.{stored.kind}")
    exported = as_onnx(data, stored.about)
    return Artifact(exported, "onnx", hashlib.sha256(exported).hexdigest(), f"{name}.onnx")


def _stored(session: Session, transformation_id: int, part: TransformationPart) -> _Stored:
    transformation = get_transformation(session, transformation_id)
    digest: str | None = getattr(transformation, f"{part}_digest")
    kind: NetworkKind | None = getattr(transformation, f"{part}_kind")
    if digest is None or kind is None:
        raise NoArtifact(f"Transformation {transformation_id} has no {part}.")
    before = session.get_one(ModelVersion, transformation.from_version_id)
    after = session.get_one(ModelVersion, transformation.to_version_id)
    about = {
        "part": part,
        "from_version": before.name,
        "to_version": after.name,
        "normalize": "true" if part == "h" and after.normalize else "false",
        "source_sha256": digest,
    }
    return _Stored(digest, kind, about)
