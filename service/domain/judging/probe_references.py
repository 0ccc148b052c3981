"""Probe images as references: what both versions of an upgrade make of the images that a gallery keeps, so that it is
judged without anybody posting one."""

from functools import partial

from sqlalchemy import select, text

from service import logs
from service.db import Database
from service.domain.judging.reference_pairs import (
    IS_REFERENCE,
    NoReferenceAccepted,
    ReferenceImage,
    add_references,
    pair_parameters,
    versions_of,
)
from service.networks.encoders import Encoders, EncodingFailed, EncodingStopped
from service.tables import ProbeImage, Upgrade

events = logs.Events(__name__)

_LACKING = f"""
SELECT i.external_id, i.id FROM probe_images m JOIN items i ON i.id = m.item_id
WHERE m.gallery_id = :gallery_id AND NOT EXISTS (
  SELECT FROM reference_pairs p WHERE {IS_REFERENCE})
ORDER BY i.id
"""


def encode_probe_images(database: Database, encoders: Encoders, upgrade: Upgrade) -> None:
    """Have both versions of an upgrade encode the gallery's probe images, if they have not yet, and keep the embeddings
    as references; an image for which that fails is passed over, and so are all where it takes too long or where one of
    the versions has no networks.

    Running it again does what is left. Raises `ArtifactUnusable` (409) for a network that cannot be loaded.
    """
    with database.session_scope() as session:
        generations = versions_of(session, upgrade)
        if not all(generation.version.has_networks for generation in generations):
            return
        rows = session.execute(text(_LACKING), pair_parameters(*generations)).all()
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
