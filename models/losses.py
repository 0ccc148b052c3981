"""Losses; each names its paper and equation."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al., ICML 2020, equation 1).

    first and second: (B, P) float32 projections of two views of the same B images. Returns a scalar, the mean over the
    2·B views of -log softmax of the other view's cosine similarity among the 2·B - 1 others.
    """
    views = functional.normalize(torch.cat([first, second]), dim=1)  # (2B, P)
    similarities = views @ views.T / temperature  # (2B, 2B)
    similarities.fill_diagonal_(float("-inf"))
    count = len(first)
    positives = torch.arange(2 * count, device=views.device).roll(count)  # row i's other view
    return functional.cross_entropy(similarities, positives)


class SmoothedSoftmax(nn.Module):
    """A linear classifier without bias and its cross entropy with label smoothing (Szegedy et al., CVPR 2016,
    section 7)."""

    def __init__(self, embedding_dim: int, classes: int, label_smoothing: float) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, classes, bias=False)
        self.label_smoothing = label_smoothing

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """(B, D) float32 and (B,) int64 -> a scalar, the mean over the batch."""
        return functional.cross_entropy(self.linear(embedding), labels, label_smoothing=self.label_smoothing)
