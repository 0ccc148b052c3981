"""The references by which a backfill is judged before it is done: items whose row h made, and of which an operator gave
the image to an upgrade, so that φ_new of it is known (`service.domain.judging.reference_pairs`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.backfill.candidates import FOUND_BY_QUERIES
from service.domain.gallery.better_rows import made_by_h
from service.domain.gallery.current_rows import has_revision, read_current_vectors
from service.domain.gallery.generations import StoredGeneration
from service.index.protocol import Vectors

_MOST = 1_000  # a curve's time grows with their square

_QUERY = """
SELECT i.id, i.label, i.thumbnail, e.uncertainty, coalesce(t.times, 0) AS found, p.embedding_to
FROM (SELECT DISTINCT ON (item_id) item_id, revision, embedding_to FROM reference_pairs
  WHERE gallery_id = :gallery_id AND to_version_id = :version_id ORDER BY item_id, created_at DESC) p
JOIN items i ON {has_revision}
JOIN {table} e ON {made_by_h}{found}
ORDER BY hashint8extended(i.id, :seed) LIMIT :most
"""


@dataclass(frozen=True)
class KnownItems:
    """N references by ascending id: encoded, (N, D) by φ_new, and transformed, (N, D) what h made, float32;
    uncertainty: (N,) float32, the squared error that h expects, NaN where it does not say; found: (N,) how often
    shadowed queries found them; labels: (N,) class numbers, -1 without one; thumbnails: as JPEG, None without one."""

    encoded: Vectors
    transformed: Vectors
    uncertainty: NDArray[np.float32]
    found: NDArray[np.float64]
    labels: NDArray[np.int64]
    thumbnails: list[bytes | None]

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, positions: NDArray[np.int64]) -> "KnownItems":
        return KnownItems(
            self.encoded[positions],
            self.transformed[positions],
            self.uncertainty[positions],
            self.found[positions],
            self.labels[positions],
            [self.thumbnails[position] for position in positions],
        )


def known_items(session: Session, generation: StoredGeneration, seed: int) -> KnownItems:
    """Return up to 1,000 references of a generation, drawn by `seed`; there may be none."""
    query = _QUERY.format(
        table=generation.table, has_revision=has_revision("p"), made_by_h=made_by_h("e"), found=FOUND_BY_QUERIES
    )
    parameters = {
        "gallery_id": generation.gallery_id,
        "version_id": generation.version.id,
        "generation_id": generation.id,
        "seed": seed,
        "most": _MOST,
    }
    rows = sorted(session.execute(text(query), parameters), key=lambda row: row.id)
    ids = np.array([row.id for row in rows], np.int64)
    _, transformed = read_current_vectors(session, generation, _MOST, ids)
    names, classes = np.unique([row.label or "" for row in rows], return_inverse=True)
    labels = np.where(names[classes] == "", -1, classes) if rows else np.empty(0, np.int64)
    encoded = [np.frombuffer(row.embedding_to, "<f4") for row in rows]
    return KnownItems(
        encoded=np.array(encoded, np.float32).reshape(len(rows), generation.vector_format.embedding_dim),
        transformed=transformed,
        uncertainty=np.array([row.uncertainty for row in rows], np.float32),
        found=np.array([row.found for row in rows], np.float64),
        labels=labels.astype(np.int64),
        thumbnails=[row.thumbnail for row in rows],
    )
