"""How good a trained h and g are on rows that they never saw."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifacts import TransformationNetwork
from models.metrics import cmc, gap_closed, retrieval_metrics, squared_errors, vector_errors
from models.normalize import l2_normalize
from models.statistics import reliability
from service.domain.training.files import FeatureRows

Vectors = NDArray[np.float32]
_ROWS_AT_ONCE = 1_024


def held_out_metrics(
    rows: FeatureRows,
    h: TransformationNetwork,
    g: TransformationNetwork | None,
    linear: TransformationNetwork | None = None,
    *,
    chained_transformations: Sequence[int] = (),
    normalize: bool,
    device: str,
) -> dict[str, Any]:
    """Return h's, the linear map's and g's errors on held-out rows, how often an item's new embedding finds the item's
    own transformed one first, whether h's expected errors are the true ones and, with labels, retrieval old/old, new/h
    and new/new (l2). `chained` has h's and g's on what each chained transformation gives for the same images, in the
    order of their ids.

    `normalize` is the new version's: what stands in for its embeddings has unit norm too. `mean_predictor_error` is the
    mean squared error of giving every row the held-out rows' mean. `retrieval` is null when no two rows share a label.
    The held-out rows are of the classes that h learned from: on others it may be worse.
    """
    transformed, expected = _apply(h, rows, normalize)
    metrics: dict[str, Any] = {"held_out_rows": len(rows), "h": _compared(transformed, rows, device)}
    if expected is not None and len(rows):
        metrics["uncertainty"] = _reliability(expected, transformed, rows)
    if linear is not None:
        metrics["linear"] = _compared(_apply(linear, rows, normalize)[0], rows, device)
    metrics |= _of_g(g, rows)
    metrics["chained"] = []
    for number, transformation_id in enumerate(chained_transformations):
        given = _given_by_chain(rows, number)
        found = {"h": _compared(_apply(h, given, normalize)[0], given, device), **_of_g(g, given)}
        metrics["chained"].append({"transformation": transformation_id, **found})
    metrics["retrieval"] = None if rows.labels is None else _retrieval(rows, rows.labels, transformed, device)
    return metrics


def _given_by_chain(rows: FeatureRows, number: int) -> FeatureRows:
    """Return the rows with what h and g are given after a chained transformation."""
    assert rows.chained_embedding_from is not None
    sides = rows.chained_side_information_from
    return replace(
        rows,
        embedding_from=rows.chained_embedding_from[number],
        side_information_from=None if sides is None else sides[number],
    )


def _of_g(g: TransformationNetwork | None, rows: FeatureRows) -> dict[str, dict[str, float]]:
    if g is None or rows.side_information_to is None:
        return {}
    return {"g": vector_errors(_apply(g, rows)[0], rows.side_information_to)}


def _compared(transformed: Vectors, rows: FeatureRows, device: str) -> dict[str, float]:
    numbers = np.arange(len(rows))
    own = cmc(rows.embedding_to, numbers, transformed, numbers, ks=(1,), device=device)[1]
    return {**vector_errors(transformed, rows.embedding_to), "own_item_first": own}


def _reliability(expected: Vectors, transformed: Vectors, rows: FeatureRows) -> dict[str, Any]:
    found = reliability(expected, squared_errors(transformed, rows.embedding_to))
    groups = [{"expected": expected_, "true": true} for expected_, true in zip(found.expected, found.true, strict=True)]
    correlation = found.rank_correlation
    return {"rank_correlation": None if np.isnan(correlation) else correlation, "squared_errors": groups}


def _apply(
    network: TransformationNetwork, rows: FeatureRows, normalize: bool = False
) -> tuple[Vectors, Vectors | None]:
    """Return (N, D) outputs and (N,) expected squared errors, None where the network does not say."""
    side = rows.side_information_from
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(rows), _ROWS_AT_ONCE)]
    found = [
        network.with_uncertainty(rows.embedding_from[part], None if side is None else side[part]) for part in parts
    ]
    outputs = np.concatenate([output for output, _ in found])
    expected = [uncertainty for _, uncertainty in found if uncertainty is not None]
    return l2_normalize(outputs) if normalize else outputs, np.concatenate(expected) if expected else None


def _retrieval(rows: FeatureRows, labels: NDArray[np.int64], transformed: Vectors, device: str) -> Any:
    if len(np.unique(labels)) == len(labels):
        return None

    def measured(query: Vectors, gallery: Vectors) -> dict[str, float]:
        found = retrieval_metrics(query, labels, gallery, labels, self_match=True, device=device)
        return {"cmc_at_1": found.cmc1, "cmc_at_5": found.cmc5, "map": found.map}

    old_old = measured(rows.embedding_from, rows.embedding_from)
    new_h, new_new = measured(rows.embedding_to, transformed), measured(rows.embedding_to, rows.embedding_to)
    closed = {name: _gap(old_old[name], new_h[name], new_new[name]) for name in old_old}
    return {"old_old": old_old, "new_h": new_h, "new_new": new_new, "gap_closed": closed}


def _gap(old_old: float, new_h: float, new_new: float) -> float | None:
    gap = gap_closed(old_old, new_h, new_new)
    return None if np.isnan(gap) else gap
