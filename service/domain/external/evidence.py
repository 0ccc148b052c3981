"""What an upgrade of another store is judged by: rows that were drawn of it, and what φ_new gives for their images.

Rows are drawn once, as their ranges are written: of a few ranges, so that a judgement reads
these again and no others. Nobody chooses what is judged but the draw: vectors of other keys are refused.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.connectors.store import ExternalStore, KeyRange, Rows, Vectors, part_of
from service.errors import Unprocessable
from service.tables import ExternalBatch, ExternalReference, ExternalUpgrade, ModelVersion
from service.vectors.arrow import read_strings, read_table, read_vectors, refuse_no_rows, refuse_unknown_columns
from service.vectors.bounded_tables import TableLimits
from service.vectors.rows import EmbeddingRows, Origin

_UNIT = 0.01
_NOT_DRAWN = "It was not drawn: ask for references, and give those."
_NOT_FINITE = "The embedding has a value that is not finite."
_NOT_UNIT = "The embedding has norm {norm:.4g}, and the new model version gives unit norm."


class NoVectorAccepted(Unprocessable):
    """Every vector of the request was rejected; nothing was stored."""


@dataclass(frozen=True)
class DrawnReferences:
    """Keys of rows whose vectors by φ_new would be evidence, how many have been `given`, and how many were drawn."""

    ids: list[str]
    given: int
    drawn: int


@dataclass(frozen=True)
class VectorResult:
    """What became of one vector."""

    id: str
    status: Literal["accepted", "rejected"]
    error: str | None = None


@dataclass(frozen=True)
class ReferenceRows:
    """Rows that both models encoded: the old side's as h reads them, (N, D) float32 what φ_new gives, and (N, D) what
    the new side has."""

    old: EmbeddingRows
    target: Vectors
    transformed: Vectors

    def __len__(self) -> int:
        return len(self.target)


def draw_references(session: Session, upgrade: ExternalUpgrade, wanted: int, seed: int) -> DrawnReferences:
    """Return up to `wanted` of the rows that were drawn and are not given yet, the same for the same seed."""
    of_upgrade = ExternalReference.upgrade_id == upgrade.id
    query = select(ExternalReference.key).where(of_upgrade, ExternalReference.embedding_to.is_(None))
    keys = sorted(session.scalars(query), key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    given, drawn = count_references(session, upgrade)
    return DrawnReferences(keys[:wanted], given, drawn)


def count_references(session: Session, upgrade: ExternalUpgrade) -> tuple[int, int]:
    """Return of how many rows φ_new's vector is known, and how many were drawn."""
    counts = select(func.count(ExternalReference.embedding_to), func.count())
    given, drawn = session.execute(counts.where(ExternalReference.upgrade_id == upgrade.id)).one()
    return given, drawn


def give_references(
    session: Session, upgrade: ExternalUpgrade, body: BinaryIO, limits: TableLimits
) -> list[VectorResult]:
    """Keep vectors by φ_new of rows that were drawn: a table with the columns id and embedding. One that is given again
    takes the place of the one before.

    Raises `UnknownFormat` (415), `InvalidImport` (422), `TableTooLarge` (413), and `NoVectorAccepted` (422) when none
    is accepted.
    """
    version = session.get_one(ModelVersion, upgrade.to_version_id)
    table = read_table(body, limits)
    refuse_unknown_columns(table.column_names, {"id", "embedding"})
    refuse_no_rows(table.num_rows)
    keys = [key or "" for key in read_strings(table, "id", nullable=False)]
    vectors = read_vectors(table, "embedding", version.embedding_dim)
    query = select(ExternalReference.key).where(
        ExternalReference.upgrade_id == upgrade.id, ExternalReference.key.in_(keys)
    )
    drawn = set(session.scalars(query))
    results = []
    for key, vector in zip(keys, vectors, strict=True):
        error = _NOT_DRAWN if key not in drawn else _fault(vector, version.normalize)
        results.append(VectorResult(key, "accepted" if error is None else "rejected", error))
        if error is None:
            given = update(ExternalReference).where(
                ExternalReference.upgrade_id == upgrade.id, ExternalReference.key == key
            )
            session.execute(given.values(embedding_to=vector.astype("<f4").tobytes()))
    if all(result.error for result in results):
        raise NoVectorAccepted(f"No vector was accepted. {results[0].id!r}: {results[0].error}")
    return results


def read_references(
    session: Session, upgrade: ExternalUpgrade, store: ExternalStore, *, most: int
) -> ReferenceRows | None:
    """Return up to `most` references whose rows are there still, read from both sides of the store; None without."""
    query = (
        select(ExternalReference.key, ExternalReference.embedding_to, ExternalBatch)
        .join(
            ExternalBatch,
            (ExternalBatch.upgrade_id == ExternalReference.upgrade_id)
            & (ExternalBatch.number == ExternalReference.number)
            & (ExternalBatch.pass_number == upgrade.pass_number),
        )
        .where(ExternalReference.upgrade_id == upgrade.id, ExternalReference.embedding_to.is_not(None))
        .order_by(ExternalReference.number, ExternalReference.key)
        .limit(most)
    )
    by_range: dict[int, tuple[KeyRange, dict[str, Vectors]]] = {}
    for key, embedding, batch in session.execute(query):
        _, given = by_range.setdefault(batch.number, (KeyRange(batch.after, batch.upto), {}))
        given[key] = np.frombuffer(embedding or b"", "<f4")
    parts = [_rows_of_range(store, keys, given) for keys, given in by_range.values()]
    parts = [part for part in parts if part[0].keys]
    if not parts:
        return None
    olds, news, targets = zip(*parts, strict=True)
    return ReferenceRows(_as_embedding_rows(olds), np.concatenate(targets), np.concatenate([n.embedding for n in news]))


def _rows_of_range(store: ExternalStore, keys: KeyRange, given: dict[str, Vectors]) -> tuple[Rows, Rows, Vectors]:
    """Return the rows of both sides, and φ_new's vectors, of those references that both sides have."""
    old, new = store.read(keys), store.read_new(keys)
    there = set(old.keys) & set(new.keys) & given.keys()
    both = [part_of(rows, [place for place, key in enumerate(rows.keys) if key in there]) for rows in (old, new)]
    found = [given[key] for key in both[0].keys]
    return both[0], both[1], np.stack(found) if found else np.empty((0, 0), np.float32)


def _as_embedding_rows(parts: Sequence[Rows]) -> EmbeddingRows:
    count = sum(len(part.keys) for part in parts)
    sides = [part.side_information for part in parts if part.side_information is not None]
    return EmbeddingRows(
        item_id=np.arange(count),
        revision=np.zeros(count, np.int64),
        origin=np.full(count, Origin.IMPORTED, np.int16),
        hops=np.zeros(count, np.int16),
        uncertainty=np.zeros(count, np.float32),
        embedding=np.concatenate([part.embedding for part in parts]),
        side_information=np.concatenate(sides) if sides else None,
    )


def _fault(vector: Vectors, unit: bool) -> str | None:
    if not np.isfinite(vector).all():
        return _NOT_FINITE
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return _NOT_UNIT.format(norm=norm) if unit and abs(norm - 1) > _UNIT else None
