"""What the storm writes: every write of an item has a token, which fixes every number that may be stored for it.

So a row that belongs to an older write, to another item or to another space is recognised by its values alone. Vectors
are exact in float16. Tokens that are equal modulo `CLUSTERS` are near each other, so that a search has neighbours.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.artifacts import Encoder, load_encoder, load_transformation_network, save_network
from models.backbones import ConvEncoder
from models.preprocessing import Preprocessing, preprocess_batch
from service.vectors.rows import Origin
from tests.networks import PREPROCESSING, SIZE, image_bytes, transformation_bytes

EMBEDDING_DIM = 128
SIDE_INFORMATION_DIM = 64
CLUSTERS = 4_096
_PREVIOUS = 10**15  # added to a token: the vectors of v1 that come with those of v2
_CLUSTER_NUMBERS = 96  # of the embedding's numbers, those that the cluster fixes
_VERSION_SEEDS = {"v1": 1, "v2": 2}
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Vectors = NDArray[np.float32]
Pair = tuple[Vectors, Vectors]  # embedding (N, 128) and side-information (N, 64)
# Vectors imported in the space of v1, of v2 alone, or of v2 with v1's beside them; or an image.
Kind = Literal["v1", "v2", "both", "image"]


class Write(NamedTuple):
    """One write of one item."""

    token: int
    kind: Kind


def previous_of(tokens: Sequence[int]) -> list[int]:
    """Return the tokens of the vectors of v1 that are imported beside those of v2."""
    return [token + _PREVIOUS for token in tokens]


def imported(tokens: Sequence[int]) -> Pair:
    """Return the vectors that are imported for tokens."""
    numbers: NDArray[np.uint64] = np.asarray(tokens, np.uint64)
    clusters: NDArray[np.uint64] = numbers % np.uint64(CLUSTERS)
    cluster = _random_bytes(clusters, _CLUSTER_NUMBERS, salt=1)
    own = _random_bytes(numbers, EMBEDDING_DIM - _CLUSTER_NUMBERS + SIDE_INFORMATION_DIM, salt=2)
    values = (np.concatenate([cluster, own], axis=1).astype(np.float32) - np.float32(128)) / np.float32(64)
    return values[:, :EMBEDDING_DIM], values[:, EMBEDDING_DIM:]


@lru_cache
def artifacts(version: str) -> tuple[bytes, bytes]:
    """Return φ and ψ of a version."""
    seed = _VERSION_SEEDS[version]
    return _encoder(EMBEDDING_DIM, seed), _encoder(SIDE_INFORMATION_DIM, 100 + seed)


@lru_cache
def transformation_artifacts() -> tuple[bytes, bytes]:
    """Return h and g from v1 to v2."""
    return (
        transformation_bytes(EMBEDDING_DIM, SIDE_INFORMATION_DIM, EMBEDDING_DIM, seed=7),
        transformation_bytes(EMBEDDING_DIM, SIDE_INFORMATION_DIM, SIDE_INFORMATION_DIM, seed=8),
    )


def _encoder(dim: int, seed: int) -> bytes:
    """An untrained encoder gives nearly the same for all images; its last layer spreads them again."""
    torch.manual_seed(seed)
    network = ConvEncoder(8, dim, last_relu=False).eval()
    last = network.layers[-1]
    assert isinstance(last, nn.BatchNorm2d)
    with torch.inference_mode():
        outputs = network(torch.randn(256, 3, SIZE, SIZE))
    last.weight.data /= outputs.std(dim=0)
    last.bias.data = (last.bias - outputs.mean(dim=0)).detach() / outputs.std(dim=0)
    return save_network(network)


def picture(token: int) -> bytes:
    """Return the image file that is posted for a token."""
    return image_bytes(token)


class Reference:
    """The networks, applied offline: what the service must have stored."""

    def __init__(self) -> None:
        h, g = (
            load_transformation_network(
                data, from_dim=EMBEDDING_DIM, side_information_dim=SIDE_INFORMATION_DIM, to_dim=to_dim
            )
            for data, to_dim in zip(transformation_artifacts(), (EMBEDDING_DIM, SIDE_INFORMATION_DIM), strict=True)
        )
        self._h, self._g = h, g
        self._encoders = {version: self._load_encoders(version) for version in _VERSION_SEEDS}
        self.encoded_one = lru_cache(maxsize=20_000)(self._encoded_one)

    def expected(self, version: str, origin: Origin, writes: Sequence[Write]) -> Pair | None:
        """Return what rows of `origin` hold in the space of `version`; None if such a row cannot be.

        All writes are of one kind.
        """
        kind = writes[0].kind
        tokens = [write.token for write in writes]
        if origin == Origin.ENCODED:
            return self.encoded(version, tokens) if kind == "image" else None
        if origin == Origin.BACKFILLED:
            return self.encoded("v2", tokens) if kind == "image" and version == "v2" else None
        if origin == Origin.IMPORTED and version == "v2":
            return imported(tokens) if kind in ("v2", "both") else None
        if origin == Origin.TRANSFORMED and version == "v1":
            return None
        before = self._in_v1(kind, tokens)
        if before is None or version == "v1":
            return None if kind == "image" else before
        return self.transformed(before)

    def _in_v1(self, kind: Kind, tokens: Sequence[int]) -> Pair | None:
        if kind == "image":
            return self.encoded("v1", tokens)
        if kind == "v2":
            return None
        return imported(previous_of(tokens) if kind == "both" else tokens)

    def transformed(self, pair: Pair) -> Pair:
        """Return (h, g) of rows as they are stored: rounded to float16."""
        embedding, side_information = (part.astype(np.float16).astype(np.float32) for part in pair)
        return self._h(embedding, side_information), self._g(embedding, side_information)

    def encoded(self, version: str, tokens: Sequence[int]) -> Pair:
        pairs = [self.encoded_one(version, token) for token in tokens]
        return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])

    def _encoded_one(self, version: str, token: int) -> Pair:
        with Image.open(io.BytesIO(picture(token))) as image:
            inputs = preprocess_batch([image.convert("RGB")], Preprocessing.from_json(PREPROCESSING))
        phi, psi = self._encoders[version]
        return phi(inputs), psi(inputs)

    def _load_encoders(self, version: str) -> tuple[Encoder, Encoder]:
        size = Preprocessing.from_json(PREPROCESSING).shape
        phi, psi = artifacts(version)
        return (
            load_encoder(phi, output_dim=EMBEDDING_DIM, input_size=size),
            load_encoder(psi, output_dim=SIDE_INFORMATION_DIM, input_size=size),
        )


def _random_bytes(keys: NDArray[np.uint64], count: int, salt: int) -> NDArray[np.uint8]:
    """Return (N, count) bytes that the keys fix (splitmix64); `count` is a multiple of 8."""
    words = np.arange(count // 8, dtype=np.uint64) + np.uint64(salt << 56)
    with np.errstate(over="ignore"):
        state: NDArray[np.uint64] = (keys[:, None] * np.uint64(64) + words) * _MIX[0]
        state = (state ^ (state >> np.uint64(30))) * _MIX[1]
        state = (state ^ (state >> np.uint64(27))) * _MIX[2]
        state ^= state >> np.uint64(31)
    mixed: NDArray[np.uint8] = state.view(np.uint8).reshape(len(keys), count)
    return mixed
