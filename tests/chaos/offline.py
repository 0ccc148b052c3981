"""Networks of the model-based test, and what they give, computed from `models` alone: no row is read back for it."""

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import httpx
import numpy as np
from numpy.typing import NDArray

from models.artifacts import (
    Encoder,
    TransformationNetwork,
    load_encoder,
    load_transformation_network,
)
from models.images import decode_image
from models.normalize import l2_normalize
from models.preprocessing import Preprocessing, preprocess_batch
from tests.networks import PREPROCESSING, SIZE, encoder_bytes, image_bytes, transformation_bytes

Vectors = NDArray[np.float32]

# Embedding and side-information dimensions; the embeddings of v2 have unit norm, and v3 has no ψ.
DIMS: dict[str, tuple[int, int | None]] = {"v1": (6, 5), "v2": (8, 4), "v3": (10, None)}
NORMALIZED = frozenset({"v2"})

# The transformations that are registered: a star around v1, so that some upgrades take two hops, or read two
# generations. And so the way of fewest hops between any two versions.
REGISTERED = [("v1", "v2"), ("v2", "v1"), ("v1", "v3"), ("v3", "v1")]
PATHS: dict[tuple[str, str], tuple[str, ...]] = {pair: pair for pair in REGISTERED} | {
    ("v2", "v3"): ("v2", "v1", "v3"),
    ("v3", "v2"): ("v3", "v1", "v2"),
}


@dataclass(frozen=True)
class Row:
    """One item's vectors in one generation, as float32 values after storing; `origin` as the service names it."""

    origin: str
    embedding: Vectors
    side_information: Vectors | None

    def differs_from(self, other: "Row", tolerance: float) -> bool:
        """Whether anything but rounding is different."""
        mine, others = self.side_information, other.side_information
        if self.origin != other.origin or (mine is None) != (others is None):
            return True
        if mine is not None and others is not None and not np.allclose(mine, others, tolerance, tolerance):
            return True
        return not np.allclose(self.embedding, other.embedding, tolerance, tolerance)


def stored(values: Vectors, dtype: str) -> Vectors:
    """Return what is left of values that were stored."""
    return values.astype(np.float16).astype(np.float32) if dtype == "float16" else values


def encoded(version: str, seed: int, dtype: str) -> Row:
    """Return the row of the image of a seed, encoded by a version."""
    embedding, side_information = _phi_and_psi(version, seed)
    return Row(
        "encoded", stored(embedding, dtype), None if side_information is None else stored(side_information, dtype)
    )


def query_of(version: str, seed: int) -> Vectors:
    """Return a version's embedding of the image of a seed, (D,) float32, as a query has it."""
    return _phi_and_psi(version, seed)[0]


def imported(version: str, seed: int, dtype: str) -> Row:
    """Return a row of random vectors of a version."""
    embedding_dim, side_dim = DIMS[version]
    generator = np.random.default_rng([abs(seed), embedding_dim, int(seed < 0)])
    embedding = generator.standard_normal(embedding_dim, np.float32)
    side = None if side_dim is None else stored(generator.standard_normal(side_dim, np.float32), dtype)
    return Row("imported", stored(embedding, dtype), side)


def transformed(row: Row, path: tuple[str, ...], dtype: str) -> Row:
    """Return what h and g along a path of versions make of a row."""
    embedding = row.embedding[None]
    side_information = None if row.side_information is None else row.side_information[None]
    for before, after in pairwise(path):
        h, g = (_transformation(before, after, dim) for dim in DIMS[after])
        assert h is not None
        after_h = h(embedding, side_information)
        side_information = None if g is None else g(embedding, side_information)
        embedding = l2_normalize(after_h) if after in NORMALIZED else after_h
    side = None if side_information is None else stored(side_information[0], dtype)
    return Row("transformed", stored(embedding[0], dtype), side)


def register(client: httpx.Client) -> dict[tuple[str, str], int]:
    """Register every version and transformation; return the transformations' ids."""
    for name, (embedding_dim, side_dim) in DIMS.items():
        spec = {
            "embedding_dim": embedding_dim,
            "side_information_dim": side_dim,
            "normalize": name in NORMALIZED,
            "preprocessing": PREPROCESSING,
        }
        files = {"embedding_model": ("phi", encoder_bytes(embedding_dim, seed=embedding_dim))}
        if side_dim is not None:
            files["side_information_model"] = ("psi", encoder_bytes(side_dim, seed=side_dim))
        answer = client.post("/v1/model-versions", data={"name": name, "spec": json.dumps(spec)}, files=files)
        assert answer.status_code == 201, answer.text
    return {pair: _register_transformation(client, *pair) for pair in REGISTERED}


def _register_transformation(client: httpx.Client, before: str, after: str) -> int:
    (from_dim, from_side), (to_dim, to_side) = DIMS[before], DIMS[after]
    files = {"h": ("h", _transformation_bytes(from_dim, from_side, to_dim))}
    if to_side is not None:
        files["g"] = ("g", _transformation_bytes(from_dim, from_side, to_side))
    answer = client.post("/v1/transformations", data={"from_version": before, "to_version": after}, files=files)
    assert answer.status_code == 201, answer.text
    identifier: int = answer.json()["id"]
    return identifier


@cache
def _phi_and_psi(version: str, seed: int) -> tuple[Vectors, Vectors | None]:
    image = preprocess_batch([decode_image(image_bytes(seed))], Preprocessing.from_json(PREPROCESSING))
    embedding_dim, side_dim = DIMS[version]
    embedding = _encoder(embedding_dim)(image)
    if version in NORMALIZED:
        embedding = l2_normalize(embedding)
    return embedding[0], None if side_dim is None else _encoder(side_dim)(image)[0]


@cache
def _encoder(dim: int) -> Encoder:
    return load_encoder(encoder_bytes(dim, seed=dim), output_dim=dim, input_size=SIZE)


@cache
def _transformation(before: str, after: str, to_dim: int | None) -> TransformationNetwork | None:
    if to_dim is None:
        return None
    from_dim, from_side = DIMS[before]
    data = _transformation_bytes(from_dim, from_side, to_dim)
    return load_transformation_network(data, from_dim=from_dim, side_information_dim=from_side, to_dim=to_dim)


def _transformation_bytes(from_dim: int, side_dim: int | None, to_dim: int) -> bytes:
    """Return an h or g; every three dimensions are another network."""
    return transformation_bytes(from_dim, side_dim, to_dim, seed=100 * from_dim + to_dim)
