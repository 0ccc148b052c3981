"""Encoders, which run φ and ψ of a registered model version."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from models.artifacts import AS_THE_FILE_SAYS, ArtifactError, Encoder, NetworkForm, load_encoder
from models.loaded_networks import sentence_of
from models.normalize import l2_normalize
from models.preprocessing import UNIT, Channels, Preprocessing, ValueRange
from models.threads import in_one_thread as in_one_thread  # for who encodes apart from queries
from models.threads import sharing_long_runs
from service.blobs import BlobStore
from service.errors import Conflict, Unprocessable
from service.metrics import ENCODER_BUSY
from service.networks.confinement import NetworkStopped, where_networks_run
from service.networks.images import ImageDecoder, ReducedImage
from service.networks.micro_batching import ImageQueryMetrics, MicroBatcher
from service.settings import Settings
from service.tables import ModelVersion

Vectors = NDArray[np.float32]
_MAX_LOADED = 8


@dataclass(frozen=True)
class EncoderForm:
    """How a registered φ or ψ takes images: `channels` and `value_range` are part of their preprocessing, `network` is
    how it is run. Versions of before have none, and take RGB from 0 to 1."""

    channels: Channels = "rgb"
    value_range: ValueRange = UNIT
    network: NetworkForm = AS_THE_FILE_SAYS

    def to_json(self) -> dict[str, Any]:
        return {"channels": self.channels, "range": list(self.value_range), **self.network.to_json()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "EncoderForm":
        network = {name: value for name, value in values.items() if name not in ("channels", "range")}
        low, high = values.get("range", UNIT)
        return EncoderForm(values.get("channels", "rgb"), (low, high), NetworkForm.from_json(network))

    def preprocessing(self, values: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing of a version with these parameters."""
        return Preprocessing.from_json({**values, "channels": self.channels, "value_range": self.value_range})


class EncodingFailed(Unprocessable):
    """A network failed on an image, or gave values that are not finite for one."""


class EncodingStopped(Unprocessable):
    """A network took too long or too much memory."""


class ArtifactUnusable(Conflict):
    """A registered network cannot be loaded any more."""


class VersionWithoutNetworks(Conflict):
    """The model version is of vectors alone: nothing encodes images for it."""


def check_encodes(version: ModelVersion) -> None:
    """Raise `VersionWithoutNetworks` (409), with what to do, unless the version has networks."""
    if not version.has_networks:
        raise VersionWithoutNetworks(
            f"Model version {version.name!r} has no networks, so it encodes no images; vectors of it are taken and"
            f" searched. Add its networks: PUT /v1/model-versions/{version.name}/networks, or `gallery-upgrade versions"
            " add-networks`."
        )


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

    def encode(self, images: Sequence[ReducedImage]) -> Encoded:
        """Return φ and ψ of images that were reduced for this preprocessing. Raises `EncodingFailed` and
        `EncodingStopped`."""
        encoded = self.encode_each(images)
        for values in (encoded.embedding, encoded.side_information):
            if values is not None:
                self._finite(values)
        return encoded

    def encode_each(self, images: Sequence[ReducedImage]) -> Encoded:
        """Return φ and ψ of images that were reduced for this preprocessing; what they give that is not finite is in
        the rows of the images that they give it for. Raises `EncodingFailed` and `EncodingStopped`."""
        embeddings, sides = [], []
        for start in range(0, len(images), self.batch_items):
            inputs = self._inputs(images[start : start + self.batch_items])
            embeddings.append(self.embedding_model(inputs))
            if self.side_information_model is not None:
                sides.append(self.side_information_model(inputs))
        embedding = np.concatenate(embeddings)
        if self.normalize:
            with np.errstate(invalid="ignore", over="ignore"):  # of rows that are refused
                embedding = l2_normalize(embedding)
        return Encoded(embedding, np.concatenate(sides) if sides else None)

    def encode_embedding(self, prepare: Callable[[], Sequence[ReducedImage]]) -> Vectors:
        """Return φ alone, of the images that `prepare` reduces in this thread: what a query needs. Queries that come
        together share a run of φ. Raises `EncodingFailed`, `EncodingStopped`, `NotTried` where others' images took all
        the time that there was, and what `prepare` raises."""
        return self._normalized(self.queries(lambda: self._inputs(prepare())))

    def encode_embedding_apart(self, images: Sequence[ReducedImage]) -> Vectors:
        """Return φ alone, in a run that no query shares or waits for. Raises `EncodingFailed` and
        `EncodingStopped`."""
        return self._normalized(self.embedding_model(self._inputs(images)))

    def encode_side_information(self, images: Sequence[ReducedImage]) -> Vectors | None:
        """Return ψ alone, None where the version has none. Raises `EncodingFailed` and `EncodingStopped`."""
        if self.side_information_model is None:
            return None
        return self._finite(self.side_information_model(self._inputs(images)))

    def _inputs(self, images: Sequence[ReducedImage]) -> Vectors:
        return np.stack([image.inputs[self.preprocessing] for image in images])  # (B, 3, size, size)

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
    `images` reduces what they encode.
    """

    def __init__(self, blobs: BlobStore, settings: Settings, metrics: ImageQueryMetrics | None = None) -> None:
        self.images = ImageDecoder(settings)
        self._blobs = blobs
        self._settings = settings
        self._metrics = metrics or ImageQueryMetrics()
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: ModelVersion) -> VersionEncoder:
        """Return the version's encoder. One that is loaded will do for a row that was read before its networks came.

        Raises `VersionWithoutNetworks`, `BlobMissing`, `BlobDamaged` or `ArtifactUnusable` (409).
        """
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
        check_encodes(version)
        assert version.preprocessing is not None
        assert version.embedding_model_digest is not None
        form = EncoderForm.from_json(version.embedding_model_form)
        preprocessing = form.preprocessing(version.preprocessing)
        image = preprocessing.shape
        embedding_model = self._network(version.embedding_model_digest, version.embedding_dim, image, form.network)
        side_information_model = None
        if version.side_information_model_digest is not None and version.side_information_dim is not None:
            side_form = EncoderForm.from_json(version.side_information_model_form)
            side_information_model = self._network(
                version.side_information_model_digest, version.side_information_dim, image, side_form.network
            )

        return VersionEncoder(
            version.name,
            preprocessing,
            version.normalize,
            embedding_model,
            side_information_model,
            self._settings.encode_batch_items,
            MicroBatcher(
                sharing_long_runs(embedding_model, image),
                self._settings.query_batch_images,
                self._settings.query_batch_wait_ms / 1000,
                self._metrics,
                self._settings.network_seconds,
            ),
        )

    def _network(self, digest: str, output_dim: int, image: tuple[int, int, int], form: NetworkForm) -> Encoder:
        try:
            network = load_encoder(
                self._blobs.get(digest),
                output_dim=output_dim,
                input_size=image,
                form=form,
                device=self._settings.device,
                trust_torchscript=self._settings.trust_torchscript,
                open_session=where_networks_run(self._settings),
            )
        except ArtifactError as error:
            raise ArtifactUnusable(f"Artifact {digest} cannot be used any more: {error}") from error
        busy = ENCODER_BUSY.labels(self._settings.device)
        return partial(_run, network, output_dim, busy)


def _run(network: Encoder, output_dim: int, busy: Counter, inputs: Vectors) -> Vectors:
    """(B, depth, H, W) -> (B, output_dim). Raises `EncodingFailed` for whatever a network may do instead, and
    `EncodingStopped` where it would take too much."""
    began = time.monotonic()
    try:
        output = network(inputs)
    except NetworkStopped as error:
        raise EncodingStopped(f"The network was stopped on {len(inputs)} images: {error}") from error
    except Exception as error:  # a network may raise anything
        raise EncodingFailed(f"The network failed on {len(inputs)} images: {sentence_of(error)}") from error
    finally:
        busy.inc(time.monotonic() - began)
    if output.shape != (len(inputs), output_dim):
        raise EncodingFailed(
            f"The network gave an output of shape {tuple(output.shape)} for {len(inputs)} images;"
            f" ({len(inputs)}, {output_dim}) is due."
        )
    return output
