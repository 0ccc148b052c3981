"""Whether an image that is given again for an item is the one that the item's stored embedding was made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.gallery.current_rows import is_current, read_current_vectors
from service.domain.gallery.generations import StoredGeneration
from service.index.protocol import Vectors
from service.vectors.rows import Origin

LEAST_COSINE = 0.99  # between an image's embedding and the one stored of its item; less is another image
ANOTHER_IMAGE = "Its embedding is far from the one stored of this item: it is another image."
_ROWS_PER_CHUNK = 1_024


@dataclass(frozen=True)
class StoredRow:
    """An item's current row in a generation."""

    item_id: int
    revision: int
    origin: Origin
    embedding: NDArray[np.float32]

    def is_of_another_image(self, embedding: Vectors) -> bool:
        """Return whether (D,) float32, of an image by the row's model version, is far from the row. Where the row was
        transformed itself, that cannot be told, and is False."""
        return self.origin is not Origin.TRANSFORMED and cosine(embedding, self.embedding) < LEAST_COSINE


def stored_rows(session: Session, generation: StoredGeneration, external_ids: Sequence[str]) -> dict[str, StoredRow]:
    """Return the current rows of those items that have one, by external id."""
    query = text(
        f"SELECT i.external_id, i.id, i.revision, e.origin FROM items i JOIN {generation.table} e ON {is_current('e')}"
        " WHERE i.gallery_id = :gallery_id AND i.external_id = ANY(:ids) ORDER BY i.id"
    )
    rows = session.execute(query, {"gallery_id": generation.gallery_id, "ids": list(external_ids)}).all()
    ids = np.array([row.id for row in rows], np.int64)
    _, embeddings = read_current_vectors(session, generation, _ROWS_PER_CHUNK, ids)
    return {
        row.external_id: StoredRow(row.id, row.revision, Origin(row.origin), embedding)
        for row, embedding in zip(rows, embeddings, strict=True)
    }


def cosine(first: Vectors, second: Vectors) -> float:
    """Return the cosine of two vectors (D,); of zero ones, 1 if both are."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else float(np.array_equal(first, second))
