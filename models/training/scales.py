"""Scales: h's default recipe learns from values of mean 0 and variance 1, and is then given the scales of its rows.

Adam steps by about the learning rate, however small what is to be learned is. Embeddings of unit norm lie close
together (ArcFace's of 128 dimensions vary by 0.02 about their mean), and steps of 0.0005 never settle at such a
distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.features import PairedFeatures
from models.transformation import ConvBlock, Transformation

_ROWS_AT_ONCE = 16_384
_ROUNDING = 1e-12  # of a space's squared mean: what varies by less is constant, stored as float32


@dataclass(frozen=True)
class Scale:
    """What (N, D) values of a space have as means, (D,), and as deviation from them, a scalar over all dimensions."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation


@dataclass(frozen=True)
class Scales:
    """The scales of a training's rows; `side_information` is what the side branch gets, if need be the embedding."""

    embedding: Scale
    side_information: Scale
    target: Scale


def scales_of(pairs: PairedFeatures) -> Scales:
    """Return the scales of all rows; where a space is constant, it is not divided."""
    embedding = _scale_of(pairs.embedding)
    side = embedding if pairs.side_information is None else _scale_of(pairs.side_information)
    return Scales(embedding, side, _scale_of(pairs.target))


def fold_scales(network: Transformation, scales: Scales) -> None:
    """Change the members of a network, which learned from scaled values, to give for values as they are what they are
    to give: exact but for rounding."""
    with torch.no_grad():
        for member in network.members:
            _fold_inputs(member.old_branch[0], scales.embedding)
            _fold_inputs(member.side_branch[0], scales.side_information)
            last = member.mixer[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(scales.target.deviation)
            last.bias.mul_(scales.target.deviation).add_(scales.target.mean)


def _fold_inputs(block: nn.Module, scale: Scale) -> None:
    """W·(x - μ)/σ is (W/σ)·x less (W/σ)·μ, which joins the mean that BatchNorm takes off."""
    assert isinstance(block, ConvBlock)
    linear, norm = block[0], block[1]
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    linear.weight.div_(scale.deviation)
    norm.running_mean.add_(linear.weight @ scale.mean)


def _scale_of(values: Tensor) -> Scale:
    parts = torch.split(values, _ROWS_AT_ONCE)
    mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / len(values)
    variance = torch.stack([(part.double() - mean).square().sum() for part in parts]).sum() / values.numel()
    is_constant = variance <= _ROUNDING * mean.square().mean()
    deviation = torch.where(is_constant, torch.ones_like(variance), variance.sqrt())
    return Scale(mean.float(), deviation.float())
