"""Fitting the squared error that is expected of h's output, per item, on rows that h did not learn from.

FastFill (Jaeckle et al., ICLR 2023, section 3.2) learns it beside h, on h's own rows, by L = ½·exp(-s)·l + ½·s of an
item's loss l and the head's output s. The same loss is minimised here after h: on its own rows h errs less than on
others. It is convex, so that there is one best head.
"""

import torch
from torch import Tensor

from models.transformation import ErrorHead

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of a squared weight, for inputs of variance 1
_JUDGING = 5  # every fifth row
_STEPS = 200
_LEAST = 1e-3  # of the mean error: of an item without one, nothing could be expected that is small enough
_ROUNDING = 1e-6  # of an input's size: what varies by less is constant


def fit_error_head(inputs: Tensor, squared_errors: Tensor) -> ErrorHead:
    """Return the head of least loss: inputs (N, F) float32, squared_errors (N,) float32, none negative, not all zero.

    What a weight costs is chosen by the loss on every fifth row, of heads that are fitted on the others.
    """
    inputs, errors = inputs.double(), squared_errors.double()
    mean, deviation = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    deviation = torch.where(deviation > _ROUNDING * mean.abs(), deviation, torch.inf)
    scaled = torch.cat([(inputs - mean) / deviation, torch.ones_like(errors)[:, None]], dim=1)
    unit = errors.mean()
    relative = (errors / unit).clamp(min=_LEAST)

    judging = torch.arange(len(errors), device=errors.device) % _JUDGING == 0
    losses = []
    for penalty in _PENALTIES:
        weights = _least(scaled[~judging], relative[~judging], penalty)
        losses.append(float(_loss(scaled[judging], relative[judging], weights)))
    weights = _least(scaled, relative, _PENALTIES[losses.index(min(losses))])

    head = ErrorHead(inputs.shape[1]).to(squared_errors.device)
    slopes = weights[:-1] / deviation
    with torch.no_grad():
        head.weights.weight.copy_(slopes[None, :])
        head.weights.bias.fill_(float(weights[-1] + unit.log() - slopes @ mean))
    return head.requires_grad_(False)


def _least(inputs: Tensor, errors: Tensor, penalty: float) -> Tensor:
    """Return the weights (F,) of least penalised loss; the last input is constant, and its weight costs nothing."""
    weights = inputs.new_zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def penalised() -> Tensor:
        optimizer.zero_grad()
        value = _loss(inputs, errors, weights) + penalty * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return value

    optimizer.step(penalised)  # type: ignore[no-untyped-call]  # likewise
    return weights.detach()


def _loss(inputs: Tensor, errors: Tensor, weights: Tensor) -> Tensor:
    """FastFill's, twice."""
    logarithms = inputs @ weights
    return (errors * (-logarithms).exp() + logarithms).mean()
