"""The linear map from [φ_old, ψ_old] to a target, in closed form: the floor that h is compared with, and a share of h.

Ridge regression, with what it costs a weight chosen on rows that it was not fitted on. It takes seconds where h takes
minutes, and a few hundred pairs where h needs tens of thousands.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.training.features import PairedFeatures
from models.transformation import LinearMap

# In units of the mean variance of an input.
_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SHARES = tuple(tenth / 10 for tenth in range(11))
# How much more squared error a larger share of the linear map may cost.
_TOLERANCE = 1.01
_ROWS_AT_ONCE = 65_536


def fit_linear_map(learned: PairedFeatures, held_out: PairedFeatures) -> LinearMap:
    """Return the map of least squared error on the held-out rows, fitted on all views of the learned ones."""
    side_dim = 0 if learned.side_information is None else learned.side_information.shape[1]
    linear = LinearMap(learned.embedding.shape[1], side_dim, learned.target.shape[1]).to(learned.target.device)
    input_mean, target_mean, gram, cross = _moments(learned)
    values, vectors = torch.linalg.eigh(gram)
    projected = vectors.T @ cross
    best = float("inf")

    for penalty in _PENALTIES:
        scaled = projected / (values.clamp(min=0) + penalty * values.mean())[:, None]
        weights = vectors @ scaled  # (D_in, D_to)
        bias = target_mean - input_mean @ weights
        found = torch.addmm(bias, _inputs(held_out).double(), weights)
        error = float(functional.mse_loss(found, held_out.target.double()))
        if error < best:
            best = error
            with torch.no_grad():
                linear.weights.weight.copy_(weights.T)
                linear.weights.bias.copy_(bias)

    return linear


def best_share(mean: Tensor, linear: Tensor, target: Tensor) -> float:
    """Return the largest share of the linear map, in tenths, whose squared error is within a hundredth of the least.

    mean: (N, D) what h's members give for held-out rows, linear: (N, D) what the map gives. The squared error hardly
    differs around its least, and there the simpler map is the better guess (the rule of one standard error: Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3).
    """
    errors = [float(functional.mse_loss(torch.lerp(mean, linear, share), target)) for share in _SHARES]
    return max(share for share, error in zip(_SHARES, errors, strict=True) if error <= _TOLERANCE * min(errors))


def _moments(learned: PairedFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means (D_in,) and (D_to,), and the covariances (D_in, D_in) and (D_in, D_to), all float64."""
    inputs, target = _inputs(learned), learned.target
    input_mean, target_mean = inputs.double().mean(dim=0), target.double().mean(dim=0)
    gram = input_mean.new_zeros(len(input_mean), len(input_mean))
    cross = input_mean.new_zeros(len(input_mean), len(target_mean))

    for start in range(0, len(inputs), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        x = inputs[rows].double() - input_mean
        gram.addmm_(x.T, x)
        cross.addmm_(x.T, target[rows].double() - target_mean)

    return input_mean, target_mean, gram / len(inputs), cross / len(inputs)


def _inputs(pairs: PairedFeatures) -> Tensor:
    """Return [φ_old, ψ_old], (N, D_from + S)."""
    if pairs.side_information is None:
        return pairs.embedding
    return torch.cat([pairs.embedding, pairs.side_information], dim=1)
