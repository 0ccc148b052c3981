"""Rows of other stores: their digests, what h and g make of them, and whether a store keeps what it was given."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.connectors.store import Description, NewSide, Rows, Vectors
from service.networks.transformations import PoisonedItems
from service.tables import ExternalUpgrade, ModelVersion, Transformation
from service.vectors.rows import EmbeddingRows, Origin, StoredDtype, VectorFormat

# Of a row's norm: what a store may change of a vector beyond rounding to its numbers, and what transforming it again,
# among other rows or on another device, may.
_KEPT_WITHIN = {"float32": 1e-5, "float16": 1e-3}
_KEPT_WITHIN_OTHERS = 0.02
AGAIN_WITHIN = 0.01
_SMALLEST = 1e-30


class Networks(Protocol):
    """What applies h and g (`service.networks.transformations.TransformationNetworks`)."""

    def transform(self, rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
        """Return rows of the wanted format. Raises `PoisonedItems` and `TransformationFailed`."""


class RowsRefused(Exception):
    """Some rows cannot be transformed; trying again would not help. `reasons` say by key what is wrong: words that
    follow "its"."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(refusal_of(len(reasons), reasons))
        self.reasons = reasons


def refusal_of(count: int, reasons: dict[str, str]) -> str:
    """Return a sentence that names the first of `count` rows that cannot be upgraded, with what is wrong."""
    named = list(reasons.items())[:10]
    listed = "; ".join(f"{key!r}: its {reason}" for key, reason in named)
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    return f"{count} {'row' if count == 1 else 'rows'} cannot be upgraded: {listed}{more}."


@dataclass(frozen=True)
class Target:
    """What the new side of a store holds, and what makes it of the old one's rows."""

    networks: Networks
    transformation_id: int
    vector_format: VectorFormat
    kept_within: float
    scales: bool

    @classmethod
    def of(
        cls, networks: Networks, transformation: Transformation, to_version: ModelVersion, store: Description
    ) -> "Target":
        """Return the target of a transformation in a store."""
        needs_direction = store.scales or store.metric == "cosine" or to_version.normalize
        return cls(
            networks,
            transformation.id,
            VectorFormat(
                to_version.embedding_dim,
                side_information_dim_of(transformation, to_version),
                stored_dtype(store),
                needs_direction,
            ),
            _KEPT_WITHIN.get(store.dtype, _KEPT_WITHIN_OTHERS),
            store.scales,
        )

    def transform(self, rows: Rows) -> Rows:
        """Return h's and g's outputs for rows, float32 values of the store's number format; a
        `service.connectors.store.Transform`. Raises `RowsRefused` and `TransformationFailed`."""
        count, width = len(rows.keys), self.vector_format.side_information_dim
        if not count:
            side = None if width is None else np.empty((0, width), np.float32)
            return Rows([], np.empty((0, self.vector_format.embedding_dim), np.float32), side)
        _refuse_not_finite(rows)
        given = EmbeddingRows(
            item_id=np.arange(count),
            revision=np.zeros(count, np.int64),
            origin=np.full(count, Origin.IMPORTED, np.int16),
            hops=np.zeros(count, np.int16),
            uncertainty=np.zeros(count, np.float32),
            embedding=rows.embedding,
            side_information=rows.side_information,
        )
        try:
            made = self.networks.transform(given, self.vector_format, (self.transformation_id,))
        except PoisonedItems as error:
            raise RowsRefused({rows.keys[place]: reason for place, reason in sorted(error.reasons.items())}) from error
        side = made.side_information
        return Rows(rows.keys, _single(made.embedding), None if side is None else _single(side))

    def difference(self, wanted: Rows, found: Rows) -> float:
        """Return by how much of its norm a row differs most, of rows with the same keys; inf for another shape."""
        pairs = [(wanted.embedding, found.embedding)]
        if wanted.side_information is not None:
            nothing = np.empty((0, 0), np.float32)
            given = nothing if found.side_information is None else found.side_information
            pairs.append((wanted.side_information, given))
        return max(self._difference(*pair) for pair in pairs)

    def _difference(self, wanted: Vectors, found: Vectors) -> float:
        if wanted.shape != found.shape:
            return float("inf")
        if not len(wanted):
            return 0.0
        wide, given = wanted.astype(np.float64), found.astype(np.float64)
        if self.scales:
            wide, given = wide / _norms(wide), given / _norms(given)
        largest = (np.linalg.norm(wide - given, axis=1) / _norms(wide)[:, 0]).max()
        return float(largest) if np.isfinite(largest) else float("inf")


def new_side_of(session: Session, upgrade: ExternalUpgrade) -> NewSide:
    """Return what an upgrade's store is opened with."""
    to_version = session.get_one(ModelVersion, upgrade.to_version_id)
    transformation = session.get_one(Transformation, upgrade.transformation_id)
    side_dim = side_information_dim_of(transformation, to_version)
    return NewSide(upgrade.side_name, to_version.embedding_dim, side_dim)


def stored_dtype(store: Description) -> StoredDtype:
    """Return the number format that outputs are rounded to before they are written."""
    return "float16" if store.dtype == "float16" else "float32"


def side_information_dim_of(transformation: Transformation, to_version: ModelVersion) -> int | None:
    """Return the dimension of the side-information that rows have after a transformation; None without any."""
    return None if transformation.g_digest is None else to_version.side_information_dim


def _refuse_not_finite(rows: Rows) -> None:
    """Raise `RowsRefused` for rows that have a value that is not finite."""
    reasons: dict[str, str] = {}
    for name, vectors in (("side-information", rows.side_information), ("embedding", rows.embedding)):
        if vectors is not None:
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            reasons |= {rows.keys[place]: f"{name} has a value that is not finite" for place in bad.tolist()}
    if reasons:
        raise RowsRefused({key: reasons[key] for key in rows.keys if key in reasons})


def id_digest_of(keys: list[str]) -> str:
    """Return the SHA-256 of keys in order, in hex."""
    digest = hashlib.sha256()
    for key in keys:
        data = key.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of(rows: Rows) -> str:
    """Return the SHA-256 of keys and vectors in order, in hex."""
    digest = hashlib.sha256(bytes.fromhex(id_digest_of(rows.keys)))
    for vectors in (rows.embedding, rows.side_information):
        if vectors is not None:
            digest.update(np.ascontiguousarray(vectors, "<f4").tobytes())
    return digest.hexdigest()


def _norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, D) -> (N, 1), none of them zero."""
    norms: NDArray[np.float64] = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST)
    return norms


def _single(vectors: Vectors) -> Vectors:
    return np.ascontiguousarray(vectors, np.float32)
