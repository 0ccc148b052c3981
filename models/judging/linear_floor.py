"""The closed-form linear map as a floor under h: fitted on the references themselves, each of them answered by a map
that was fitted on others.

An h that learned another space has a linear map beside it that leads there too; this one does not.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.judging.rankings import overlap
from models.judging.search import nearest_items
from models.metrics import Metric, Vectors
from models.training.features import PairedFeatures
from models.training.linear_map import fit_linear_map

_FOLDS = 5
_K = 10
_FOR_PENALTY = 4  # one in so many of the rows that a map is fitted on chooses its penalty


def cross_fitted(
    embedding: Vectors, side_information: Vectors | None, target: Vectors, seed: int = 0, folds: int = _FOLDS
) -> Vectors:
    """(N, D_old), (N, S) and (N, D_new), float16 or float32 -> (N, D_new) float32, as they come: not scaled to unit
    norm.

    Raises ValueError for fewer rows than would give each map a row to learn from and one to choose by.
    """
    if len(target) < 2 * folds:
        raise ValueError(f"{len(target)} references are too few for {folds} linear maps.")
    found = np.empty(target.shape, np.float32)
    drawn = np.random.default_rng(seed).permutation(len(target))

    def pairs(rows: NDArray[np.int64]) -> PairedFeatures:
        side = None if side_information is None else torch.from_numpy(side_information[rows]).float()
        return PairedFeatures(
            torch.from_numpy(embedding[rows]).float(), side, torch.from_numpy(target[rows]).float(), None
        )

    for fold in range(folds):
        answered = drawn[fold::folds]
        others = np.concatenate([drawn[other::folds] for other in range(folds) if other != fold])
        choosing = np.arange(len(others)) % _FOR_PENALTY == 0
        linear = fit_linear_map(pairs(others[~choosing]), pairs(others[choosing]))
        given = pairs(answered)
        found[answered] = linear(given.embedding, given.side_information).numpy()
    return found


def stronger(target: Vectors, candidates: Sequence[Vectors], metric: Metric) -> int:
    """Return which of several stand-ins, (N, D) each, has more of the ten nearest that (N, D) `target` has for itself;
    the first of equals."""
    ids = np.arange(len(target))
    wanted = nearest_items(target, [(ids, target)], _K, metric, ids).ids
    found = [nearest_items(target, [(ids, items)], _K, metric, ids).ids for items in candidates]
    overlaps = [float(overlap(wanted, answers).mean()) for answers in found]
    return overlaps.index(max(overlaps))
