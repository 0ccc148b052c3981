"""Whether an encoder gives what it gave: a few probe images of each gallery are encoded again in this process.

What is compared is φ of the active version: the item's row in the active generation where the image was encoded for it,
or else what a later upgrade's reference has of it (after a cutover, rows are h's). A cosine below `LEAST_COSINE` is a
process that computes something else than the gallery was made of: another library, device or file. Its queries would be
answered wrongly with nothing failing, so the process says that it is not ready.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.gallery.current_rows import has_revision, is_current
from service.domain.gallery.generations import StoredGeneration, get_stored_generation, gone_if_dropped
from service.domain.gallery.same_image import cosine
from service.index.protocol import Vectors
from service.networks.encoders import Encoders, EncodingFailed, in_one_thread
from service.tables import Gallery, ModelVersion
from service.vectors.rows import Origin

events = logs.Events(__name__)

LEAST_COSINE = 0.999
_RETRY_SECONDS = 5.0

_DRIFTED = (
    "Model version {version!r} gives other embeddings here than gallery {gallery!r} was made of: item {item!r} has a"
    " cosine of {cosine:.4f} to the one that is stored, and {least} is the least. Compare this process's libraries,"
    " device and artifacts with those of the others."
)


@dataclass(frozen=True)
class _Probe:
    """An item's image, and φ (D,) float32 that the version once gave for it."""

    item: str
    image: bytes
    embedding: Vectors


class DriftWatch:
    """Looks when the process starts, and every so many seconds; `images` of each gallery. Safe to use from many
    threads."""

    def __init__(self, database: Database, encoders: Encoders, images: int, every_seconds: float) -> None:
        self._database = database
        self._encoders = encoders
        self._images = images
        self._every_seconds = every_seconds
        self._alarms: list[str] = []
        self._has_looked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def start(self) -> None:
        """Look now, and again and again, in the background."""
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def has_looked(self) -> bool:
        """Whether every gallery that there was at the start was looked at once."""
        return self._has_looked.is_set()

    @property
    def alarms(self) -> Sequence[str]:
        """What was found the last time, a sentence for each gallery whose encoder drifted."""
        return tuple(self._alarms)

    def look(self) -> None:
        """Encode a few images of each gallery that keeps some."""
        with self._database.session_scope() as session:
            query = select(Gallery.id).where(Gallery.probe_images > 0).order_by(Gallery.id)
            gallery_ids = list(session.scalars(query))
        self._alarms = [alarm for gallery_id in gallery_ids if (alarm := self._alarm(gallery_id)) is not None]
        self._has_looked.set()

    def _alarm(self, gallery_id: int) -> str | None:
        try:
            with self._database.session_scope() as session, gone_if_dropped():
                gallery = session.get(Gallery, gallery_id)
                if gallery is None or gallery.active_generation_id is None:
                    return None  # deleted meanwhile
                stored = get_stored_generation(session, gallery_id, gallery.active_generation_id)
                if not stored.version.has_networks:
                    return None
                probes = _draw(session, stored, self._images)
            return self._compare(gallery, stored.version, probes)
        except SQLAlchemyError:
            raise  # an outage says nothing of this gallery
        except Exception as error:  # noqa: BLE001 - an encoder that cannot run fails its own queries, and a generation may just be dropped; logged
            reason = f"{type(error).__name__}: {error}"
            events.warning("drift.not_looked_at", gallery_id=gallery_id, reason=reason)
            return None

    def _compare(self, gallery: Gallery, version: ModelVersion, probes: Sequence[_Probe]) -> str | None:
        found = {probe.item: self._cosine(version, probe) for probe in probes}
        if not found or min(found.values()) >= LEAST_COSINE:
            return None
        item = min(found, key=lambda name: found[name])
        sentence = _DRIFTED.format(
            version=version.name, gallery=gallery.name, item=item, cosine=found[item], least=LEAST_COSINE
        )
        events.warning("encoder.drifted", gallery_id=gallery.id, model_version=version.name, reason=sentence)
        return sentence

    def _cosine(self, version: ModelVersion, probe: _Probe) -> float:
        encoder = self._encoders.get(version)
        image = self._encoders.images.reduce(probe.image, [encoder.preprocessing])
        try:
            return cosine(encoder.encode_embedding_apart([image])[0], probe.embedding)
        except EncodingFailed:  # it gave finite values once
            return 0.0

    def _run(self) -> None:
        with in_one_thread():
            while True:
                try:
                    self.look()
                except SQLAlchemyError as error:
                    events.exception("drift.failed", error)
                wait_seconds = self._every_seconds if self.has_looked else _RETRY_SECONDS
                if self._stopping.wait(wait_seconds):
                    return


def _draw(session: Session, stored: StoredGeneration, count: int) -> list[_Probe]:
    """Return up to `count` of a gallery's images, at random, of which it is known what a generation's version gave."""
    query = (
        "WITH known AS ("
        " SELECT m.item_id, i.external_id, e.embedding::real[] AS stored, p.embedding AS given"
        f" FROM probe_images m JOIN items i ON i.id = m.item_id JOIN {stored.table} e ON {is_current('e')}"
        " LEFT JOIN LATERAL ("
        "  SELECT CASE WHEN to_version_id = :version_id THEN embedding_to ELSE embedding_from END AS embedding"
        f" FROM reference_pairs r WHERE r.gallery_id = i.gallery_id AND {has_revision('r')}"
        "  AND :version_id IN (from_version_id, to_version_id) ORDER BY created_at DESC LIMIT 1) p"
        f" ON e.origin = {int(Origin.TRANSFORMED)}"
        " WHERE m.gallery_id = :gallery_id"
        f" AND (e.origin IN ({int(Origin.ENCODED)}, {int(Origin.BACKFILLED)}) OR p.embedding IS NOT NULL)"
        " ORDER BY random() LIMIT :count)"
        " SELECT k.external_id, k.stored, k.given, m.image FROM known k"
        " JOIN probe_images m ON m.gallery_id = :gallery_id AND m.item_id = k.item_id"
    )
    parameters = {"gallery_id": stored.gallery_id, "version_id": stored.version.id, "count": count}
    rows = session.execute(text(query), parameters)
    return [
        _Probe(
            row.external_id,
            bytes(row.image),
            np.array(row.stored, np.float32) if row.given is None else np.frombuffer(row.given, "<f4"),
        )
        for row in rows
    ]
