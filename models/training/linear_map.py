"""The linear map from [φ_old, ψ_old] to a target, in closed form: the floor that h is compared with, and a share of h.

Ridge regression, with what it costs a weight chosen on rows that it was not fitted on. It takes seconds where h takes
minutes, and a few hundred pairs where h needs tens of thousands.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.training.features import PairedFeatures
from models.transformation import LinearMap

# In units of the mean variance of an input's own space.
_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SHARES = tuple(tenth / 10 for tenth in range(11))
# Below it an input is constant, and says nothing of the target.
_LEAST_VARIANCE = torch.finfo(torch.float64).tiny
# How much more squared error a larger share of the linear map may cost.
_TOLERANCE = 1.01
_ROWS_AT_ONCE = 16_384


def fit_linear_map(learned: PairedFeatures, held_out: PairedFeatures) -> LinearMap:
    """Return the map of least squared error on the held-out rows, fitted on all views of the learned ones."""
    side_dim = 0 if learned.side_information is None else learned.side_information.shape[1]
    linear = LinearMap(learned.embedding.shape[1], side_dim, learned.target.shape[1]).to(learned.target.device)
    input_mean, target_mean, gram, cross = _moments(learned)
    scale = _deviations(gram, learned.embedding.shape[1])
    values, vectors = torch.linalg.eigh(gram / scale[:, None] / scale)
    projected = vectors.T @ (cross / scale[:, None])
    best = float("inf")

    for penalty in _PENALTIES:
        penalised = values.clamp(min=0) + penalty * values.mean()
        scaled = projected / penalised.clamp(min=_LEAST_VARIANCE)[:, None]
        weights = vectors @ scaled / scale[:, None]  # (D_in, D_to)
        bias = target_mean - input_mean @ weights
        found = torch.addmm(bias, _inputs(held_out).double(), weights)
        error = float(functional.mse_loss(found, held_out.target.double()))
        if error < best:
            best = error
            with torch.no_grad():
                linear.weights.weight.copy_(weights.T)
                linear.weights.bias.copy_(bias)

    return linear.requires_grad_(False)


def best_share(mean: Tensor, linear: Tensor, target: Tensor) -> float:
    """Return the largest share of the linear map, in tenths, whose squared error is within a hundredth of the least.

    mean: (N, D) what h's members give for held-out rows, linear: (N, D) what the map gives. The squared error hardly
    differs around its least, and there the simpler map is the better guess (the rule of one standard error: Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3). Where the members learned nothing finite, it is 0:
    what is wrong with them is then seen, and not hidden by the map.
    """
    if not bool(mean.isfinite().all()):
        return 0.0
    errors = [float(functional.mse_loss(torch.lerp(mean, linear, share), target)) for share in _SHARES]
    return max(share for share, error in zip(_SHARES, errors, strict=True) if error <= _TOLERANCE * min(errors))


def _moments(learned: PairedFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means (D_in,) and (D_to,), and the covariances (D_in, D_in) and (D_in, D_to), all float64.

    The rows are gone through twice, a part at a time: beside the features there is no room for a copy in float64.
    """
    count = len(learned.target)
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, count, _ROWS_AT_ONCE)]
    sums = [(_inputs(learned, part).double().sum(dim=0), learned.target[part].double().sum(dim=0)) for part in parts]
    input_mean, target_mean = (torch.stack(several).sum(dim=0) / count for several in zip(*sums, strict=True))
    gram = input_mean.new_zeros(len(input_mean), len(input_mean))
    cross = input_mean.new_zeros(len(input_mean), len(target_mean))

    for part in parts:
        x = _inputs(learned, part).double() - input_mean
        gram.addmm_(x.T, x)
        cross.addmm_(x.T, learned.target[part].double() - target_mean)

    return input_mean, target_mean, gram / count, cross / count


def _deviations(gram: Tensor, from_dim: int) -> Tensor:
    """Return (D_in,) the deviation of each input's space, φ_old or ψ: 1 where it is constant."""
    variances = [
        part.mean().expand(len(part)) for part in torch.split(gram.diagonal(), [from_dim, len(gram) - from_dim])
    ]
    variance = torch.cat(variances)
    return torch.where(variance > _LEAST_VARIANCE, variance, 1.0).sqrt()


def _inputs(pairs: PairedFeatures, rows: slice = slice(None)) -> Tensor:
    """Return [φ_old, ψ_old] of some rows, (N, D_from + S)."""
    if pairs.side_information is None:
        return pairs.embedding[rows]
    return torch.cat([pairs.embedding[rows], pairs.side_information[rows]], dim=1)
