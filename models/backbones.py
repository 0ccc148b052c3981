"""Encoders, built from plain numbers and rebuilt from `config()` alone.

Their embedding is the global average pool of a ReLU'd block, not normalised, as in the paper's code. A classifier's
head is separate, in training only. `ConvEncoder` and `SmallResNet` are for images of about 32 pixels, `ResNet` and
`MobileNetV2` for about 224.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_RESNET_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # by depth, in each of the four stages
# (expansion, channels, blocks, stride of the first), the table's t, c, n and s
_MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Backbone(nn.Module):
    """An encoder: (B, 3, H, W) -> (B, embedding_dim), the same type."""

    embedding_dim: int
    layers: nn.Sequential

    def config(self) -> dict[str, Any]:
        """Return the arguments that build this network."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.layers(images).mean(dim=(2, 3))  # (B, embedding_dim)
        return pooled


class ConvEncoder(Backbone):
    """Four 3x3 convolutions with BatchNorm and ReLU, halving twice: enough for images of 32 pixels and below. Without
    `last_relu` the embedding may be negative."""

    def __init__(self, width: int, embedding_dim: int, last_relu: bool = True) -> None:
        super().__init__()
        self.width = width
        self.embedding_dim = embedding_dim
        self.last_relu = last_relu
        channels = [3, width, 2 * width, 2 * width, embedding_dim]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(channels)):
            layers += [*_convolution(before, after, 3, stride=2 if number in (1, 2) else 1), nn.ReLU()]
        self.layers = nn.Sequential(*(layers if last_relu else layers[:-1]))

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "embedding_dim": self.embedding_dim, "last_relu": self.last_relu}


class SmallResNet(Backbone):
    """A residual network for small photographs: a stem and three stages of `blocks` blocks at 1, 1/2 and 1/4 of the
    stem's size, widths w, 2w and `embedding_dim`. A stem that halves the size takes a quarter of the time."""

    def __init__(self, width: int, blocks: int, embedding_dim: int, stem_stride: int = 1) -> None:
        super().__init__()
        self.width = width
        self.blocks = blocks
        self.embedding_dim = embedding_dim
        self.stem_stride = stem_stride
        layers: list[nn.Module] = [*_convolution(3, width, 3, stem_stride), nn.ReLU()]
        before = width
        for stage, after in enumerate((width, 2 * width, embedding_dim)):
            for block in range(blocks):
                layers.append(ResidualBlock(before, after, 2 if stage > 0 and block == 0 else 1))
                before = after
        self.layers = nn.Sequential(*layers)

    def config(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "blocks": self.blocks,
            "embedding_dim": self.embedding_dim,
            "stem_stride": self.stem_stride,
        }


class ResNet(Backbone):
    """ResNet-18 or ResNet-50 (He et al., CVPR 2016, table 1), whose last block gives `embedding_dim` channels instead
    of 512 or 2048, as in the paper's released code."""

    def __init__(self, depth: int, embedding_dim: int) -> None:
        super().__init__()
        if depth not in _RESNET_BLOCKS:
            raise ValueError(f"A ResNet has a depth of {' or '.join(map(str, _RESNET_BLOCKS))}, not {depth}.")
        self.depth = depth
        self.embedding_dim = embedding_dim
        layers: list[nn.Module] = [*_convolution(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        before = 64
        for stage, blocks in enumerate(_RESNET_BLOCKS[depth]):
            width = 64 * 2**stage
            for block in range(blocks):
                is_last = stage == 3 and block == blocks - 1
                stride = 2 if stage > 0 and block == 0 else 1
                if depth == 18:
                    after = embedding_dim if is_last else width
                    layers.append(ResidualBlock(before, after, stride))
                else:
                    after = embedding_dim if is_last else 4 * width
                    layers.append(Bottleneck(before, width, after, stride))
                before = after
        self.layers = nn.Sequential(*layers)
        _initialize(self)

    def config(self) -> dict[str, Any]:
        return {"depth": self.depth, "embedding_dim": self.embedding_dim}


class MobileNetV2(Backbone):
    """MobileNetV2 of width 1 (Sandler et al., CVPR 2018, table 2), whose last 1x1 convolution gives `embedding_dim`
    channels instead of 1280."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        layers: list[nn.Module] = [*_convolution(3, 32, 3, stride=2), nn.ReLU6()]
        before = 32
        for expansion, after, blocks, stride in _MOBILENET_STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(before, after, expansion, stride if block == 0 else 1))
                before = after
        self.layers = nn.Sequential(*layers, *_convolution(before, embedding_dim, 1), nn.ReLU6())
        _initialize(self)

    def config(self) -> dict[str, Any]:
        return {"embedding_dim": self.embedding_dim}


ENCODERS: dict[str, type[Backbone]] = {
    network.__name__: network for network in (ConvEncoder, SmallResNet, ResNet, MobileNetV2)
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, figure 5 left)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(before, after, 3, stride), nn.ReLU(), *_convolution(after, after, 3))
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class Bottleneck(nn.Module):
    """He et al., CVPR 2016, figure 5 right, with the stride in the 3x3 convolution as everybody has it today."""

    def __init__(self, before: int, width: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(before, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, after, 1),
        )
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without a ReLU (Sandler et al., CVPR 2018, figure 4 d)."""

    def __init__(self, before: int, after: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * before
        widen = [*_convolution(before, width, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen, *_convolution(width, width, 3, stride, groups=width), nn.ReLU6(), *_convolution(width, after, 1)
        )
        self.is_residual = stride == 1 and before == after

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(images)
        return images + output if self.is_residual else output


def _convolution(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    """Return what brings a block's input to the form of its output."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def _initialize(network: nn.Module) -> None:
    """Draw the convolutions' weights as deep networks need it (He et al., ICCV 2015, equation 10)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
