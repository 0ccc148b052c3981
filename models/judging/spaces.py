"""What a space of embeddings looks like: rows that are broken, norms and means beside a target's, and how a threshold
on distances carries over from one space to another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.judging.search import AnyVectors, Ids, fingerprints
from models.metrics import Metric, Vectors
from models.normalize import l2_normalize

Distances = NDArray[np.float64]
_SHARES = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True)
class SpaceReport:
    """items: how many rows there are; non_finite, zero: of them; copies: finite rows that are equal to an earlier one.
    norm_mean, norm_deviation: of the finite ones; mean_offset: how far their mean is from the target's, in units of the
    target's mean norm, and norm_ratio: their mean norm in that unit; None without a target."""

    items: int
    non_finite: int
    zero: int
    copies: int
    norm_mean: float
    norm_deviation: float
    mean_offset: float | None
    norm_ratio: float | None


class SpaceCheck:
    """Looks at rows as they come. It keeps 8 bytes for each, which is what telling copies takes."""

    def __init__(self) -> None:
        self._items = self._non_finite = self._zero = 0
        self._norms = self._squares = 0.0
        self._sum: NDArray[np.float64] = np.zeros(1)  # (D,) with the first rows
        self._fingerprints: list[NDArray[np.uint64]] = []

    def add(self, vectors: AnyVectors) -> None:
        """Take (N, D) rows."""
        finite = np.isfinite(vectors).all(axis=1)
        kept = vectors if finite.all() else vectors[finite]
        squares = np.einsum("nd,nd->n", kept, kept, dtype=np.float64)
        self._items += len(vectors)
        self._non_finite += len(vectors) - len(kept)
        self._zero += int((squares == 0).sum())
        self._norms += float(np.sqrt(squares).sum())
        self._squares += float(squares.sum())
        self._sum = self._sum + kept.sum(axis=0, dtype=np.float64)
        self._fingerprints.append(fingerprints(kept))

    def report(self, target: Vectors | None = None) -> SpaceReport:
        """Compare with (M, D) rows of the space that these are to be in, if given."""
        count = max(1, self._items - self._non_finite)
        norm_mean, mean = self._norms / count, self._sum / count
        distinct = len(np.unique(np.concatenate(self._fingerprints))) if self._fingerprints else 0
        offset = ratio = None
        if target is not None:
            unit = float(np.linalg.norm(target.astype(np.float64), axis=1).mean()) or 1.0
            offset = float(np.linalg.norm(mean - target.mean(axis=0, dtype=np.float64))) / unit
            ratio = norm_mean / unit
        return SpaceReport(
            self._items,
            self._non_finite,
            self._zero,
            self._items - self._non_finite - distinct,
            norm_mean,
            float(np.sqrt(max(0.0, self._squares / count - norm_mean**2))),
            offset,
            ratio,
        )


class ItemSample:
    """Draws the same items from every generation: those whose ids' hashes are least, but none of `without`.

    It depends on the ids and the seed alone, and neither on their order nor on the chunks.
    """

    def __init__(self, items: int, seed: int, without: Ids) -> None:
        self._wanted, self._without = items, np.unique(without)
        self._salt = np.uint64(np.random.default_rng(seed).integers(0, 2**63))
        self._hashes = np.empty(0, np.uint64)
        self._ids = np.empty(0, np.int64)
        self._vectors: Vectors | None = None

    def add(self, ids: Ids, vectors: AnyVectors) -> None:
        """Take (N,) ids with (N, D) vectors; those with values that are not finite are passed over."""
        hashes = _scrambled(ids.astype(np.uint64) ^ self._salt)
        chosen = np.flatnonzero(~np.isin(ids, self._without))
        if len(chosen) > self._wanted:
            chosen = chosen[np.argpartition(hashes[chosen], self._wanted)[: self._wanted]]
        chosen = chosen[np.isfinite(vectors[chosen]).all(axis=1)]
        self._hashes = np.concatenate([self._hashes, hashes[chosen]])
        order = np.argsort(self._hashes)[: self._wanted]
        self._hashes = self._hashes[order]
        self._ids = np.concatenate([self._ids, ids[chosen]])[order]
        parts = [] if self._vectors is None else [self._vectors]
        self._vectors = np.concatenate([*parts, vectors[chosen].astype(np.float32)])[order]

    def drawn(self) -> tuple[Ids, Vectors]:
        """Return ids, ascending, and their vectors, float32."""
        order = np.argsort(self._ids)
        vectors = np.empty((0, 0), np.float32) if self._vectors is None else self._vectors
        return self._ids[order], vectors[order]


@dataclass(frozen=True)
class Threshold:
    """A distance before, the share of pairs that it lets pass, and the distance that lets as many pass after."""

    before: float
    share: float
    after: float


def pair_distances(queries: Vectors, items: Vectors, metric: Metric) -> Distances:
    """Return the distances of (Q, D) and (N, D), all Q·N of them, ascending."""
    if metric == "cosine":
        queries, items = l2_normalize(queries), l2_normalize(items)
    first, second = queries.astype(np.float64), items.astype(np.float64)
    products: Distances = first @ second.T
    if metric == "l2":
        squared = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1) - 2 * products
        return np.sort(np.sqrt(np.maximum(squared, 0)), axis=None)
    return np.sort(1 - products if metric == "cosine" else -products, axis=None)


def thresholds(before: Distances, after: Distances) -> tuple[Threshold, ...]:
    """Return the distances that let certain shares of pairs pass; (P,) ascending each, of the same pairs."""
    shares = [share for share in _SHARES if share * len(before) >= 1]
    quantiles = [np.quantile(distances, shares) for distances in (before, after)]
    return tuple(Threshold(float(old), share, float(new)) for share, old, new in zip(shares, *quantiles, strict=True))


def _scrambled(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(N,) -> (N,), one to one (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
