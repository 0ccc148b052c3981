"""References that are given as vectors: what the new model version gives for items' images, computed by whoever can.

Where a version has no networks, nothing here encodes an image, and this is how its upgrades are judged. The pair of
such a vector is the item's own stored embedding, so an item whose embedding h made is none: nobody knows what the old
version would give for it. That the vector is of the item's image is its giver's word.
"""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from sqlalchemy.orm import Session

from service.domain.gallery.same_image import StoredRow, stored_rows
from service.domain.judging.reference_pairs import (
    NoReferenceAccepted,
    ReferenceResult,
    keep_pairs,
    pair_of,
    versions_of,
)
from service.index.protocol import Vectors
from service.tables import Upgrade
from service.vectors.arrow import read_strings, read_table, read_vectors, refuse_no_rows, refuse_unknown_columns
from service.vectors.bounded_tables import TableLimits
from service.vectors.rows import Origin

_UNIT = 0.01
_NO_ITEM = "The gallery has no such item with a current embedding."
_TRANSFORMED = "Its stored embedding was made by h; a reference is of one that its model version gave."
_NOT_FINITE = "The embedding has a value that is not finite."
_NOT_UNIT = "The embedding has norm {norm:.4g}, and the new model version gives unit norm."


def give_vectors(session: Session, upgrade: Upgrade, body: BinaryIO, limits: TableLimits) -> list[ReferenceResult]:
    """Keep vectors by φ_new of items, a table with the columns id and embedding, with one result per row in order. One
    that is given again takes the place of the one before.

    Raises `UnknownFormat` (415), `InvalidImport` (422), `TableTooLarge` (413), and `NoReferenceAccepted` (422) when
    none is accepted.
    """
    versions = versions_of(session, upgrade)
    version = versions[1].version
    table = read_table(body, limits)
    refuse_unknown_columns(table.column_names, {"id", "embedding"})
    refuse_no_rows(table.num_rows)
    ids = [name or "" for name in read_strings(table, "id", nullable=False)]
    vectors = read_vectors(table, "embedding", version.embedding_dim)
    stored = stored_rows(session, versions[0], ids)

    results, pairs = [], []
    for name, vector in zip(ids, vectors, strict=True):
        row = stored.get(name)
        error = _fault(row, vector, unit=version.normalize)
        results.append(ReferenceResult(name, "rejected" if error else "accepted", error))
        if row is not None and error is None:
            pairs.append(pair_of(versions, row, row.embedding, vector))
    _refuse_none(results, len(pairs))
    keep_pairs(session, pairs)
    return results


def _refuse_none(results: Sequence[ReferenceResult], accepted: int) -> None:
    if not accepted:
        errors: list[dict[str, object]] = [{"id": result.id, "detail": result.error} for result in results[:100]]
        raise NoReferenceAccepted("No vector of the request is a reference.", errors)


def _fault(row: StoredRow | None, vector: Vectors, *, unit: bool) -> str | None:
    if row is None:
        return _NO_ITEM
    if row.origin is Origin.TRANSFORMED:
        return _TRANSFORMED
    if not np.isfinite(vector).all():
        return _NOT_FINITE
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return _NOT_UNIT.format(norm=norm) if unit and abs(norm - 1) > _UNIT else None
