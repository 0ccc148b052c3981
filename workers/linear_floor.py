"""The linear map that h is compared with: the better one of two, on the references themselves."""

from dataclasses import dataclass

from models.judging.linear_floor import cross_fitted, stronger
from models.normalize import l2_normalize
from service.domain.judging.gates import LEAST_REFERENCES
from service.index.protocol import Metric, Vectors
from service.tables import ModelVersion
from service.vectors.rows import EmbeddingRows
from workers.app import WorkerParts


@dataclass(frozen=True)
class LinearFloor:
    """What a linear map gives for references, (N, D) float32, None without one; and whether that is the map in h's
    artifact, which can be applied to other rows too."""

    vectors: Vectors | None
    stands_beside_h: bool


def linear_floor(
    parts: WorkerParts,
    rows: EmbeddingRows,
    target: Vectors,
    path: tuple[int, ...],
    version: ModelVersion,
    metric: Metric,
    seed: int,
) -> LinearFloor:
    """Return the better one of the map that stands beside h in its artifact and one that is fitted on the references,
    each answered by a map that was fitted on others. target: (N, D) what φ_new gives."""
    linear = parts.networks.linear(rows, path)
    fitted = None
    if len(rows) >= LEAST_REFERENCES:
        fitted = cross_fitted(rows.embedding, rows.side_information, target, seed)
        fitted = l2_normalize(fitted) if version.normalize else fitted
    if linear is None or (fitted is not None and stronger(target, (linear, fitted), metric) == 1):
        return LinearFloor(fitted, stands_beside_h=False)
    return LinearFloor(linear, stands_beside_h=True)
