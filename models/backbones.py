"""Small encoders, built from plain numbers and rebuilt from `config()` alone.

Their embedding is the global average pool of a ReLU'd block, not normalised, as in the paper's code. A classifier's
head is a separate Linear, in training only.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class ConvEncoder(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, halving twice: enough for images of 32 pixels and below.
    (B, 3, H, W) -> (B, embedding_dim). Without `last_relu` the embedding may be negative."""

    def __init__(self, width: int, embedding_dim: int, last_relu: bool = True) -> None:
        super().__init__()
        self.width = width
        self.embedding_dim = embedding_dim
        self.last_relu = last_relu
        channels = [3, width, 2 * width, 2 * width, embedding_dim]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(channels)):
            stride = 2 if number in (1, 2) else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*(layers if last_relu else layers[:-1]))

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "embedding_dim": self.embedding_dim, "last_relu": self.last_relu}

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.layers(images).mean(dim=(2, 3))  # (B, embedding_dim)
        return pooled


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, figure 5 left)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class SmallResNet(nn.Module):
    """A residual network for small photographs: a stem and three stages of `blocks` blocks at 1, 1/2 and 1/4 of the
    size, widths w, 2w and `embedding_dim`. (B, 3, H, W) -> (B, embedding_dim)."""

    def __init__(self, width: int, blocks: int, embedding_dim: int) -> None:
        super().__init__()
        self.width = width
        self.blocks = blocks
        self.embedding_dim = embedding_dim
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
        for stage, after in enumerate((width, 2 * width, embedding_dim)):
            for block in range(blocks):
                layers.append(ResidualBlock(before, after, 2 if stage > 0 and block == 0 else 1))
                before = after
        self.layers = nn.Sequential(*layers)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "blocks": self.blocks, "embedding_dim": self.embedding_dim}

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.layers(images).mean(dim=(2, 3))  # (B, embedding_dim)
        return pooled
