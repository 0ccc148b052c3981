"""Encoders, which run φ and ψ of a model version, and the trial of both before they are registered."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from models.artifacts import ArtifactError, ArtifactKind, Encoder, artifact_kind, load_encoder
from models.normalize import l2_normalize
from models.preprocessing import Preprocessing, preprocess_batch
from models.threads import in_one_thread as in_one_thread  # for who encodes apart from queries
from models.threads import sharing_long_runs
from service.blobs import BlobStore
from service.errors import GalleryError, Unprocessable
from service.networks.images import ImageDecoder
from service.networks.micro_batching import ImageQueryMetrics, MicroBatcher
from service.settings import Settings
from service.tables import ModelVersion

Vectors = NDArray[np.float32]
_MAX_LOADED = 8


class InvalidArtifact(Unprocessable):
    """The file is not a usable network."""


class EncodingFailed(Unprocessable):
    """A network gave values that are not finite for an image."""


class ArtifactUnusable(GalleryError):
    """A registered network cannot be loaded any more."""

    status_code = 500


@dataclass(frozen=True)
class Encoded:
    """φ (B, D) float32, of unit norm when the version normalises, and ψ (B, S) float32 or None."""

    embedding: Vectors
    side_information: Vectors | None


@dataclass(frozen=True)
class VersionEncoder:
    """φ and ψ of one model version, ready to run from any thread."""

    name: str
    preprocessing: Preprocessing
    normalize: bool
    embedding_model: Encoder
    side_information_model: Encoder | None
    batch_items: int
    queries: MicroBatcher

    def encode(self, images: Sequence[Image]) -> Encoded:
        """Return φ and ψ of RGB images, each preprocessed once. Raises `EncodingFailed`."""
        embeddings, sides = [], []
        for start in range(0, len(images), self.batch_items):
            inputs = preprocess_batch(images[start : start + self.batch_items], self.preprocessing)
            embeddings.append(self.embedding_model(inputs))
            if self.side_information_model is not None:
                sides.append(self.side_information_model(inputs))
        side_information = self._finite(np.concatenate(sides)) if sides else None
        return Encoded(self._normalized(np.concatenate(embeddings)), side_information)

    def encode_embedding(self, images: Sequence[Image]) -> Vectors:
        """Return φ alone: what a query needs. Queries that come together share a run of φ. Raises `EncodingFailed`."""
        return self._normalized(self.queries(lambda: preprocess_batch(images, self.preprocessing)))

    def encode_embedding_apart(self, images: Sequence[Image]) -> Vectors:
        """Return φ alone, in a run that no query shares or waits for. Raises `EncodingFailed`."""
        return self._normalized(self.embedding_model(preprocess_batch(images, self.preprocessing)))

    def encode_side_information(self, images: Sequence[Image]) -> Vectors | None:
        """Return ψ alone, None where the version has none. Raises `EncodingFailed`."""
        if self.side_information_model is None:
            return None
        return self._finite(self.side_information_model(preprocess_batch(images, self.preprocessing)))

    def _normalized(self, embedding: Vectors) -> Vectors:
        embedding = self._finite(embedding)
        return l2_normalize(embedding) if self.normalize else embedding

    def _finite(self, values: Vectors) -> Vectors:
        if not np.isfinite(values).all():
            raise EncodingFailed(f"Model version {self.name!r} gave values that are not finite for an image.")
        return values


class _Slot:
    """A place for one version's encoder; its lock is held while the encoder is loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.encoder: VersionEncoder | None = None


class Encoders:
    """The encoders that were asked for last, up to eight; digests are checked at every load.

    Safe to use from many threads: who asks for one that is loading waits for it, who asks for another does not.
    `images` decodes what they encode.
    """

    def __init__(self, blobs: BlobStore, settings: Settings, metrics: ImageQueryMetrics | None = None) -> None:
        self.images = ImageDecoder(settings)
        self._blobs = blobs
        self._settings = settings
        self._metrics = metrics or ImageQueryMetrics()
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: ModelVersion) -> VersionEncoder:
        """Return the version's encoder. Raises `BlobMissing`, `BlobDamaged` or `ArtifactUnusable` (500)."""
        with self._lock:
            slot = self._slots.setdefault(version.id, _Slot())
            self._slots.move_to_end(version.id)
            while len(self._slots) > _MAX_LOADED:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.encoder is None:
                slot.encoder = self._load(version)
            return slot.encoder

    def _load(self, version: ModelVersion) -> VersionEncoder:
        preprocessing = Preprocessing.from_json(version.preprocessing)
        embedding_model = self._network(version.embedding_model_digest, version.embedding_dim, preprocessing.size)
        side_information_model = None
        if version.side_information_model_digest is not None and version.side_information_dim is not None:
            side_information_model = self._network(
                version.side_information_model_digest, version.side_information_dim, preprocessing.size
            )

        return VersionEncoder(
            version.name,
            preprocessing,
            version.normalize,
            embedding_model,
            side_information_model,
            self._settings.encode_batch_items,
            MicroBatcher(
                sharing_long_runs(embedding_model, preprocessing.size),
                self._settings.query_batch_images,
                self._settings.query_batch_wait_ms / 1000,
                self._metrics,
            ),
        )

    def _network(self, digest: str, output_dim: int, input_size: int) -> Encoder:
        try:
            return load_encoder(
                self._blobs.get(digest),
                output_dim=output_dim,
                input_size=input_size,
                device=self._settings.device,
                trust_torchscript=self._settings.trust_torchscript,
            )
        except ArtifactError as error:
            raise ArtifactUnusable(f"Artifact {digest} cannot be used any more: {error}") from error


def check_preprocessing(values: dict[str, object]) -> None:
    """Raise `InvalidArtifact` (422) unless the values make a preprocessing."""
    try:
        Preprocessing.from_json(values)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArtifact(f"The preprocessing is not valid: {error}") from error


def check_encoder(data: bytes, output_dim: int, preprocessing: dict[str, object], settings: Settings) -> ArtifactKind:
    """Try a φ or ψ on an input of the declared shape and return its kind. Raises `InvalidArtifact` (422)."""
    try:
        load_encoder(
            data,
            output_dim=output_dim,
            input_size=Preprocessing.from_json(dict(preprocessing)).size,
            trust_torchscript=settings.trust_torchscript,
        )
        return artifact_kind(data)
    except ArtifactError as error:
        raise InvalidArtifact(str(error)) from error
