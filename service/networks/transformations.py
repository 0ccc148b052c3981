"""The h and g of each transformation and their application to stored rows, for which a process loads them once."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.artifacts import (
    AS_THE_FILE_SAYS,
    ArtifactError,
    NetworkForm,
    TransformationNetwork,
    load_linear_map,
    load_transformation_network,
)
from models.loaded_networks import sentence_of
from models.normalize import l2_normalize
from models.onnx_export import transformation_as_onnx
from models.precision import Precision, fastest_precision
from models.unwanted import check_wanted
from service.blobs import BlobStore
from service.db import Database
from service.errors import Conflict
from service.networks.confinement import where_networks_run
from service.settings import Settings
from service.tables import ModelVersion, Transformation
from service.vectors.rows import EmbeddingRows, VectorFormat, Vectors
from service.vectors.storing import NotStorable, to_storage


class NotExportable(Conflict):
    """The network cannot be written as ONNX."""


class TransformationFailed(Conflict):
    """A network of a transformation failed on rows, or was stopped; trying again may not help."""


class PoisonedItems(Exception):
    """Some rows cannot be transformed into ones that can be stored; trying again would not help. `reasons` says of each
    item, by its id, what is wrong: words that follow "its"."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} items")
        self.reasons = reasons


@dataclass(frozen=True)
class Hop:
    """One transformation, ready to run."""

    h: TransformationNetwork
    g: TransformationNetwork | None
    normalize: bool

    def __call__(self, embedding: Vectors, side_information: Vectors | None) -> "Transformed":
        """(B, D_from) and (B, S) | None -> h's and g's outputs. Raises `TransformationFailed`."""
        transformed, uncertainty = _applied("h", self.h, embedding, side_information)
        if self.normalize:  # the target's embeddings have unit norm, so what stands in for them has too
            transformed = l2_normalize(transformed)
        given_side = None if self.g is None else _applied("g", self.g, embedding, side_information)[0]
        return Transformed(transformed, given_side, uncertainty)


def _applied(
    name: str, network: TransformationNetwork, embedding: Vectors, side_information: Vectors | None
) -> tuple[Vectors, Vectors | None]:
    """Return what a network gives. Raises `TransformationFailed` for whatever it may do instead, and `RunAbandoned`."""
    rows = len(embedding)
    try:
        output, uncertainty = network.with_uncertainty(embedding, side_information)
    except Exception as error:  # a network may raise anything
        raise TransformationFailed(f"{name} failed on {rows} rows: {sentence_of(error)}") from error
    if output.ndim != 2 or len(output) != rows:
        raise TransformationFailed(f"{name} gave an output of shape {tuple(output.shape)} for {rows} rows.")
    return output, uncertainty


@dataclass(frozen=True)
class Transformed:
    """What a hop gives: embedding (B, D_to), side_information (B, S_to) without a g None, uncertainty (B,) the squared
    error that h expects of the embedding, None where it does not say; all float32."""

    embedding: Vectors
    side_information: Vectors | None
    uncertainty: Vectors | None


def computing_at_once(settings: Settings) -> int:
    """Return how many batches of one worker may be in h and g at a time: half of those under way, or one on a GPU.

    Threads that each have some of the cores and a batch of their own lose less to PostgreSQL's processes beside them
    than one computation that is spread over all cores, which waits for its slowest part at every layer.
    """
    return max(1, settings.batches_at_once // 2) if settings.device == "cpu" else 1


class TransformationNetworks:
    """Applies paths of transformations; a network is read from the blob store (and its digest checked) once.

    Of the threads that share it, `computing_at_once` compute at a time; the others read and write rows meanwhile.
    """

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings
        self._hops: dict[int, Hop] = {}
        self._linear_maps: dict[int, TransformationNetwork | None] = {}
        self._loading = threading.Lock()
        self._computing = threading.Semaphore(computing_at_once(settings))

    def transform(self, rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
        """Return rows of the wanted format, same ids and revisions, by the transformations of a path, in their order.

        Raises `TransformationFailed`, `RunAbandoned`, and `PoisonedItems`, with every row that
        `service.vectors.storing` refuses.
        """
        hops = [self._hop(transformation_id) for transformation_id in path]
        chunk = self._settings.rows_per_chunk
        found, poisoned = [], {}
        with self._computing:
            for start in range(0, len(rows), chunk):
                check_wanted()
                try:
                    found.append(_transform_chunk(rows.part(slice(start, start + chunk)), hops, wanted))
                except PoisonedItems as error:
                    poisoned.update(error.reasons)
        if poisoned:
            raise PoisonedItems(poisoned)
        return EmbeddingRows.concatenate(found)

    def linear(self, rows: EmbeddingRows, path: tuple[int, ...]) -> Vectors | None:
        """Return what the linear map that stands beside h gives for rows, (N, D_to) float32; None where h has none, and
        where the path has several hops."""
        if len(path) != 1:
            return None
        with self._database.session_scope() as session:
            transformation = session.get_one(Transformation, path[0])
            normalize = session.get_one(ModelVersion, transformation.to_version_id).normalize
        with self._loading:
            if path[0] not in self._linear_maps:
                data = self._blobs.get(transformation.h_digest)
                self._linear_maps[path[0]] = load_linear_map(data, self._settings.device)
        network = self._linear_maps[path[0]]
        return (
            None if network is None else Hop(network, None, normalize)(rows.embedding, rows.side_information).embedding
        )

    def apply(
        self, transformation_id: int, embedding: Vectors, side_information: Vectors | None
    ) -> tuple[Vectors, Vectors | None]:
        """Return what one transformation's h and g give for (B, D_from) and (B, S) or None, float32."""
        hop = self._hop(transformation_id)
        with self._computing:
            found = hop(embedding, side_information)
        return found.embedding, found.side_information

    def load(self, transformation_ids: Iterable[int]) -> None:
        """Have the networks ready, so that nothing that holds a lock waits for them. Raises `TransformationFailed`."""
        for transformation_id in transformation_ids:
            self._hop(transformation_id)

    def _hop(self, transformation_id: int) -> Hop:
        with self._loading:
            if transformation_id not in self._hops:
                self._hops[transformation_id] = self._load(transformation_id)
            return self._hops[transformation_id]

    def _load(self, transformation_id: int) -> Hop:
        with self._database.session_scope() as session:
            transformation = session.get_one(Transformation, transformation_id)
            before = session.get_one(ModelVersion, transformation.from_version_id)
            after = session.get_one(ModelVersion, transformation.to_version_id)
        described = transformation.architecture
        h = self._network(transformation.h_digest, before, after.embedding_dim, described.get("h", {}))
        g = None
        if transformation.g_digest is not None and after.side_information_dim is not None:
            g = self._network(transformation.g_digest, before, after.side_information_dim, described.get("g", {}))
        return Hop(h, g, after.normalize)

    def _network(
        self, digest: str, before: ModelVersion, to_dim: int, described: dict[str, Any]
    ) -> TransformationNetwork:
        device = self._settings.device
        precision = self._settings.precision or fastest_precision(device)
        form = NetworkForm.from_json(described.get("form", {}))
        data = self._blobs.get(digest)
        try:
            return load_network(data, before, to_dim, self._settings, device, precision, form)
        except ArtifactError as error:
            raise TransformationFailed(f"A network of the transformation cannot be loaded: {error}") from error


def load_network(
    data: bytes,
    before: ModelVersion,
    to_dim: int,
    settings: Settings,
    device: str = "cpu",
    precision: Precision = "float32",
    form: NetworkForm = AS_THE_FILE_SAYS,
) -> TransformationNetwork:
    """Return an h or g that leads from `before` to vectors of `to_dim` numbers. Raises `ArtifactError`."""
    return load_transformation_network(
        data,
        from_dim=before.embedding_dim,
        side_information_dim=before.side_information_dim,
        to_dim=to_dim,
        device=device,
        trust_torchscript=settings.trust_torchscript,
        precision=precision,
        form=form,
        open_session=where_networks_run(settings),
    )


def as_onnx(data: bytes, about: Mapping[str, str]) -> bytes:
    """Return an h or g of our own as ONNX that says `about` of itself. Raises `NotExportable` (409)."""
    try:
        return transformation_as_onnx(data, about)
    except ArtifactError as error:
        raise NotExportable(str(error)) from error


def _transform_chunk(rows: EmbeddingRows, hops: Sequence[Hop], wanted: VectorFormat) -> EmbeddingRows:
    embedding, side_information, uncertainty = rows.embedding, rows.side_information, None
    for hop in hops:
        found = hop(embedding, side_information)
        embedding, side_information, uncertainty = found.embedding, found.side_information, found.uncertainty
    poisoned: dict[int, str] = {}
    stored_embedding = stored_side = None
    try:
        stored_embedding = to_storage(embedding, wanted.dtype, needs_direction=wanted.needs_direction)
    except NotStorable as error:
        poisoned |= _named("transformed embedding", error, rows)
    if wanted.side_information_dim is not None:
        assert side_information is not None
        try:
            stored_side = to_storage(side_information, wanted.dtype)
        except NotStorable as error:
            poisoned = _named("transformed side-information", error, rows) | poisoned
    if stored_embedding is None or poisoned:
        raise PoisonedItems(poisoned)
    return replace(
        rows,
        hops=rows.hops + np.int16(len(hops)),
        uncertainty=np.full(len(rows), np.nan, np.float32) if uncertainty is None else uncertainty,
        embedding=stored_embedding,
        side_information=stored_side,
    )


def _named(what: str, error: NotStorable, rows: EmbeddingRows) -> dict[int, str]:
    return {int(rows.item_id[row]): f"{what} {error.reason_of(row)}" for row in error.rows.tolist()}
