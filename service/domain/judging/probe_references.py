"""Probe images as references: what both versions of an upgrade make of the images that a gallery keeps, so that it is
judged without anybody posting one."""

from functools import partial

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.gallery.generations import get_stored_generation
from service.domain.judging.reference_pairs import NoReferenceAccepted, ReferenceImage, add_references
from service.networks.encoders import Encoders, EncodingFailed, EncodingStopped
from service.tables import ModelVersion, ProbeImage, Upgrade

events = logs.Events(__name__)

_LACKING = """
SELECT i.external_id, i.id FROM probe_images m JOIN items i ON i.id = m.item_id
WHERE m.gallery_id = :gallery_id AND NOT EXISTS (
  SELECT FROM reference_pairs p WHERE p.gallery_id = i.gallery_id AND p.item_id = i.id AND p.revision = i.revision
    AND p.from_version_id = :from_version_id AND p.to_version_id = :to_version_id)
ORDER BY i.id
"""


def encode_probe_images(database: Database, encoders: Encoders, upgrade: Upgrade) -> None:
    """Have both versions of an upgrade encode the gallery's probe images, if they have not yet, and keep the embeddings
    as references; an image for which that fails is passed over, and so are all where it takes too long or where one of
    the versions has no networks.

    Running it again does what is left. Raises `ArtifactUnusable` (409) for a network that cannot be loaded.
    """
    with database.session_scope() as session:
        versions = _versions(session, upgrade)
        if not all(version.has_networks for version in versions):
            return
        rows = session.execute(text(_LACKING), _parameters(upgrade, versions)).all()
    images = [ReferenceImage(row.external_id, partial(_read, database, upgrade.gallery_id, row.id)) for row in rows]
    if not images:
        return
    try:
        _add(database, encoders, upgrade, images)
    except EncodingStopped as error:  # one by one, each might take as long again
        events.warning("probe_images.not_encoded", upgrade_id=upgrade.id, images=len(images), reason=error.message)
    except EncodingFailed:  # of one image, which is not to take the others with it
        for image in images:
            try:
                _add(database, encoders, upgrade, [image])
            except (EncodingFailed, EncodingStopped) as error:
                events.warning("probe_image.not_encoded", upgrade_id=upgrade.id, reason=error.message)


def _add(database: Database, encoders: Encoders, upgrade: Upgrade, images: list[ReferenceImage]) -> None:
    try:
        add_references(database, encoders, upgrade, images)
    except NoReferenceAccepted as error:
        events.warning("probe_images.no_references", upgrade_id=upgrade.id, images=len(images), reason=error.message)


def _read(database: Database, gallery_id: int, item_id: int) -> bytes:
    """Return an image; nothing, which is no image, where it was removed meanwhile."""
    query = select(ProbeImage.image).where(ProbeImage.gallery_id == gallery_id, ProbeImage.item_id == item_id)
    with database.session_scope() as session:
        return session.scalar(query) or b""


def _versions(session: Session, upgrade: Upgrade) -> tuple[ModelVersion, ModelVersion]:
    return (
        get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id).version,
        get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id).version,
    )


def _parameters(upgrade: Upgrade, versions: tuple[ModelVersion, ModelVersion]) -> dict[str, int]:
    before, after = versions
    return {"gallery_id": upgrade.gallery_id, "from_version_id": before.id, "to_version_id": after.id}
