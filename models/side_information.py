"""The side-information model ψ while it is trained: an encoder, and the part behind it that exists only in training.

The stored side-information is the encoder's output.
"""

import math

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's head (its section 2.1): (B, S) -> (B, projection_dim) by one hidden layer."""

    def __init__(self, input_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, input_dim), nn.ReLU(), nn.Linear(input_dim, projection_dim))

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.layers(features)
        return projected


class Decoder(nn.Module):
    """The autoencoder's other half, (B, S) -> (B, 3, size, size): a linear layer to at most 8 x 8 pixels, then each
    step doubles the size. The paper names no layers of its own."""

    def __init__(self, input_dim: int, size: int, width: int = 64) -> None:
        super().__init__()
        doublings = max(0, math.ceil(math.log2(size / 8)))
        self.size = size
        self.first = math.ceil(size / 2**doublings)
        self.width = width
        self.widen = nn.Sequential(nn.Linear(input_dim, width * self.first**2), nn.ReLU())
        layers: list[nn.Module] = []
        for _ in range(doublings):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, 1, 1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        small = self.widen(features).view(len(features), self.width, self.first, self.first)
        images: Tensor = self.layers(small)
        return images[:, :, : self.size, : self.size]
