"""The side-information model ψ: a SimCLR encoder (the paper's best kind, table 6) and its projection head.

The stored side-information is the encoder's output; the head exists only in training (SimCLR, section 2.1).
"""

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """(B, S) -> (B, projection_dim) by one hidden layer."""

    def __init__(self, input_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, input_dim), nn.ReLU(), nn.Linear(input_dim, projection_dim))

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.layers(features)
        return projected


class SimCLR(nn.Module):
    """ψ while it is trained: `encoder`, (B, 3, H, W) -> (B, S), followed by the head."""

    def __init__(self, encoder: nn.Module, side_information_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(side_information_dim, projection_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, projection_dim)."""
        projected: Tensor = self.head(self.encoder(images))
        return projected
