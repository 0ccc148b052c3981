"""What the replicas of either engine read of rows: which generations there are, and current vectors of some items."""

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.gallery.current_rows import read_current_vectors
from service.domain.gallery.generations import StoredGeneration
from service.errors import GalleryError
from service.index.protocol import Ids
from service.index.replica import GalleryState, GenerationState
from service.networks.encoders import Encoders
from service.tables import ModelVersion

events = logs.Events(__name__)

_STATES = """
SELECT g.id, g.revision, g.active_generation_id, n.id, v.name, n.state, n.index_sha256
FROM galleries g JOIN generations n ON n.gallery_id = g.id JOIN model_versions v ON v.id = n.model_version_id
WHERE n.state <> 'dropped' AND (n.state = 'complete' OR n.index_name IS NOT NULL)
  AND (CAST(:only AS bigint) IS NULL OR g.id = :only)
ORDER BY g.id, n.id
"""


class RowReader:
    """Reads rows for the replicas of one API process."""

    def __init__(self, database: Database, encoders: Encoders, rows_per_chunk: int) -> None:
        self._database = database
        self._encoders = encoders
        self._rows_per_chunk = rows_per_chunk

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return every gallery's state, or one's."""
        with self._database.session_scope() as session:
            rows = session.execute(text(_STATES), {"only": only}).all()
        found: dict[int, GalleryState] = {}
        for gallery_id, revision, active_id, generation_id, version_name, state, sha256 in rows:
            generation = GenerationState(generation_id, version_name, state == "building", sha256)
            before = found[gallery_id].generations if gallery_id in found else ()
            found[gallery_id] = GalleryState(gallery_id, revision, active_id, (*before, generation))
        return list(found.values())

    def vectors(self, session: Session, stored: StoredGeneration, wanted: Ids) -> tuple[Ids, NDArray[np.float32]]:
        """Return those of the ids that have a current row, ascending (N,), and their embeddings (N, D) float32."""
        return read_current_vectors(session, stored, self._rows_per_chunk, wanted)

    def warm(self, version: ModelVersion) -> None:
        """Load the encoder now, so that no query waits for it; one that cannot be loaded fails its own queries."""
        try:
            self._encoders.get(version)
        except GalleryError as error:
            events.warning("replica.encoder_unusable", model_version=version.name, error=error.message)
