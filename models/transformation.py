"""The transformation network of forward compatible training: h, and g of the same architecture (Ramanujan et al.,
CVPR 2022, sections 3.3 and 4.4, figure 4; the released code has no g, so the paper's sentence that it shares h's
architecture defines ours), and what our default recipe adds to its output."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Linear + BatchNorm + ReLU; the paper's public code has it as a 1x1 convolution."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(nn.Linear(input_dim, output_dim, bias=False), nn.BatchNorm1d(output_dim), nn.ReLU())


class Transformation(nn.Module):
    """(φ_old, ψ_old) -> an embedding (h) or side-information (g) of the new version.

    Each branch: d -> 2·d -> 2·d_to; both concatenated: 4·d_to -> inner -> inner -> d_to, the last layer linear. Without
    side-information both branches get φ_old, as in the released code (the paper's text says a zero vector).

    With `non_negative`, a ReLU projects the output onto the support of an embedding that is one of ReLUs: that never
    takes it farther from its target. With `classes`, the output is then moved by a share of the way to the mean of its
    class, or of its likely classes: `ClassMeans`.
    """

    def __init__(
        self,
        from_dim: int,
        side_information_dim: int | None,
        to_dim: int,
        inner_dim: int = 2048,
        non_negative: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.from_dim = from_dim
        self.side_information_dim = side_information_dim
        self.to_dim = to_dim
        self.inner_dim = inner_dim
        self.non_negative = non_negative
        self.class_means = None if classes is None else ClassMeans(classes, to_dim)
        self.mixer_dtype = torch.float32  # see `models.precision`
        side_dim = from_dim if side_information_dim is None else side_information_dim
        self.old_branch = nn.Sequential(ConvBlock(from_dim, 2 * from_dim), ConvBlock(2 * from_dim, 2 * to_dim))
        self.side_branch = nn.Sequential(ConvBlock(side_dim, 2 * side_dim), ConvBlock(2 * side_dim, 2 * to_dim))
        self.mixer = nn.Sequential(
            ConvBlock(4 * to_dim, inner_dim), ConvBlock(inner_dim, inner_dim), nn.Linear(inner_dim, to_dim)
        )

    def config(self) -> dict[str, Any]:
        return {
            "from_dim": self.from_dim,
            "side_information_dim": self.side_information_dim,
            "to_dim": self.to_dim,
            "inner_dim": self.inner_dim,
            "non_negative": self.non_negative,
            "classes": None if self.class_means is None else len(self.class_means.means),
        }

    def forward(self, embedding: Tensor, side_information: Tensor | None = None) -> Tensor:
        """(B, D_from) and (B, S) float32 -> (B, D_to) float32; a network made without side-information ignores it."""
        side = embedding
        if self.side_information_dim is not None:
            assert side_information is not None, "this transformation needs side-information"
            side = side_information
        branches = torch.cat([self.old_branch(embedding), self.side_branch(side)], dim=1)  # (B, 4·D_to)
        output: Tensor = self.mixer(branches.to(self.mixer_dtype))
        if self.non_negative:
            output = output.relu()
        return output if self.class_means is None else self.class_means(output)


class ClassMeans(nn.Module):
    """Shrinks an estimate towards the class means of the new model: (1 - share)·z + share·Σ_c p(c | z)·m_c, where
    p(c | z) is the softmax of -‖z - m_c‖² / temperature.

    What h cannot know of an image it leaves at its average over the images that look alike to the old model, between
    classes. Where the new model's classes are those that are searched for, their means say what a likely embedding is:
    the estimate of a mixture of Gaussians' centre given z. An item of none of the classes is moved as well, by the same
    share at most (docs/results.md says what that costs).
    """

    means: Tensor  # (C, D)
    temperature: Tensor  # scalars, squared distance and 0 to 1
    share: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, dim))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("share", torch.zeros(()))

    def forward(self, estimate: Tensor) -> Tensor:
        """(B, D) -> (B, D) float32."""
        estimate = estimate.float()
        # ‖z‖² is the same for all classes, so the softmax does not need it.
        distances = self.means.square().sum(dim=1) - 2 * estimate @ self.means.T  # (B, C)
        likely = torch.softmax(-distances / self.temperature, dim=1) @ self.means
        return torch.lerp(estimate, likely, self.share)


def fold_batch_norm(network: Transformation) -> Transformation:
    """Return a copy for inference only, with every BatchNorm folded into the Linear before it: W' = γ/σ·W and
    b' = β - γ·μ/σ of the running statistics give the same outputs."""
    folded = copy.deepcopy(network).eval()
    for parent in list(folded.modules()):
        for name, block in parent.named_children():
            if isinstance(block, ConvBlock):
                setattr(parent, name, _folded_block(block))
    return folded


def _folded_block(block: ConvBlock) -> nn.Sequential:
    linear, norm, relu = block
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = linear.weight.double() * scale[:, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        folded = nn.Linear(linear.in_features, linear.out_features, device=weight.device)
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
    return nn.Sequential(folded, relu)
