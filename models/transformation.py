"""The transformation network of forward compatible training: h, and g of the same architecture (Ramanujan et al.,
CVPR 2022, sections 3.3 and 4.4, figure 4; the released code has no g, so the paper's sentence that it shares h's
architecture defines ours), and what our default recipe adds to its output."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEAST_SQUARE = torch.finfo(torch.float32).tiny
WIDEST_LOGARITHM = 80.0  # its exponential is within float32
_NEVER = torch.finfo(torch.float32).max  # a distance at which nothing is likely


class ConvBlock(nn.Sequential):
    """Linear + BatchNorm + ReLU; the paper's public code has it as a 1x1 convolution."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(nn.Linear(input_dim, output_dim, bias=False), nn.BatchNorm1d(output_dim), nn.ReLU())


class Member(nn.Module):
    """The paper's network: each branch is d -> 2·d -> 2·d_to; both concatenated: 4·d_to -> inner -> inner -> d_to, the
    last layer linear."""

    def __init__(self, from_dim: int, side_dim: int, to_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.mixer_dtype = torch.float32  # see `models.precision`
        self.old_branch = nn.Sequential(ConvBlock(from_dim, 2 * from_dim), ConvBlock(2 * from_dim, 2 * to_dim))
        self.side_branch = nn.Sequential(ConvBlock(side_dim, 2 * side_dim), ConvBlock(2 * side_dim, 2 * to_dim))
        self.mixer = nn.Sequential(
            ConvBlock(4 * to_dim, inner_dim), ConvBlock(inner_dim, inner_dim), nn.Linear(inner_dim, to_dim)
        )

    def forward(self, embedding: Tensor, side: Tensor) -> Tensor:
        """(B, D_from) and (B, S) float32 -> (B, D_to) float32."""
        branches = torch.cat([self.old_branch(embedding), self.side_branch(side)], dim=1)  # (B, 4·D_to)
        output: Tensor = self.mixer(branches.to(self.mixer_dtype))
        return output.float()


class LinearMap(nn.Module):
    """A linear map of [φ_old, ψ_old] in closed form, and the share of it that the output has."""

    share: Tensor  # scalar, 0 to 1

    def __init__(self, from_dim: int, side_dim: int, to_dim: int) -> None:
        super().__init__()
        self.weights = nn.Linear(from_dim + side_dim, to_dim)
        self.register_buffer("share", torch.ones(()))

    def forward(self, embedding: Tensor, side_information: Tensor | None = None) -> Tensor:
        """(B, D_from) and (B, S) float32 -> (B, D_to) float32; None where the map has no side-information."""
        parts = [embedding] if side_information is None else [embedding, side_information]
        output: Tensor = self.weights(torch.cat(parts, dim=1))
        return output


class Transformation(nn.Module):
    """(φ_old, ψ_old) -> an embedding (h) or side-information (g) of the new version.

    One `Member` is the paper's network. Without side-information both of its branches get φ_old, as in the released
    code (the paper's text says a zero vector). What our default recipe adds, in this order:
    - several members, whose mean is taken: its squared error is the members' less their variance, for items of any
      class;
    - with `linear`, a share of a linear map, which few pairs are enough for; with no members (None) it is all there is;
    - with `non_negative`, a ReLU that projects the output onto the support of an embedding that is one of ReLUs, which
      never takes it farther from its target;
    - with `classes`, a share of the way to the mean of its class, or of its likely classes: `ClassMeans`.
    With `error_head`, it also says of each item which squared error it expects: `with_uncertainty`.
    """

    members: Sequence[Member]

    def __init__(  # noqa: PLR0913 - an artifact's configuration
        self,
        from_dim: int,
        side_information_dim: int | None,
        to_dim: int,
        inner_dim: int = 2048,
        non_negative: bool = False,
        classes: int | None = None,
        members: int | None = 1,
        linear: bool = False,
        error_head: bool = False,
    ) -> None:
        super().__init__()
        if not members and not linear:
            raise ValueError("A transformation has members, a linear map, or both.")
        self.from_dim = from_dim
        self.side_information_dim = side_information_dim
        self.to_dim = to_dim
        self.inner_dim = inner_dim
        self.non_negative = non_negative
        side_dim = from_dim if side_information_dim is None else side_information_dim
        made = [Member(from_dim, side_dim, to_dim, inner_dim) for _ in range(members or 0)]
        self.members = nn.ModuleList(made)  # type: ignore[assignment]  # torch's annotations lose what a list is of
        self.linear_map = LinearMap(from_dim, side_information_dim or 0, to_dim) if linear else None
        self.class_means = None if classes is None else ClassMeans(classes, to_dim)
        spread = (len(made) > 1) + (bool(made) and linear)
        self.error_head = ErrorHead(to_dim + spread) if error_head else None
        self.register_load_state_dict_pre_hook(_read_plain_names)  # type: ignore[no-untyped-call]  # torch leaves it

    def config(self) -> dict[str, Any]:
        return {
            "from_dim": self.from_dim,
            "side_information_dim": self.side_information_dim,
            "to_dim": self.to_dim,
            "inner_dim": self.inner_dim,
            "non_negative": self.non_negative,
            "classes": None if self.class_means is None else len(self.class_means.means),
            "members": len(self.members) or None,
            "linear": self.linear_map is not None,
            "error_head": self.error_head is not None,
        }

    def linear_alone(self) -> "Transformation | None":
        """Return the linear map beside the members as a transformation by itself; None where there is none."""
        if self.linear_map is None:
            return None
        shape = (self.from_dim, self.side_information_dim, self.to_dim, self.inner_dim, self.non_negative)
        alone = Transformation(*shape, members=None, linear=True)
        alone.linear_map = self.linear_map
        return alone.eval()

    def estimates(self, embedding: Tensor, side_information: Tensor | None = None) -> Tensor:
        """(B, D_from) and (B, S) float32 -> (members, B, D_to) float32: what each of them says by itself."""
        side = self._side(embedding, side_information)
        return torch.stack([member(embedding, side) for member in self.members])

    def forward(self, embedding: Tensor, side_information: Tensor | None = None) -> Tensor:
        """(B, D_from) and (B, S) float32 -> (B, D_to) float32; a network made without side-information ignores it."""
        return self.described(embedding, side_information)[0]

    def with_uncertainty(
        self, embedding: Tensor, side_information: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` gives, and (B,) float32 the squared error that is expected of it; None without a
        head."""
        output, description = self.described(embedding, side_information)
        return output, None if self.error_head is None else self.error_head(description)

    def described(self, embedding: Tensor, side_information: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` gives, and (B, F) what the head reads: [output, spread]."""
        side = None if self.side_information_dim is None else self._side(embedding, side_information)
        output, spread = self._combined(embedding, side)
        if self.non_negative:
            output = output.relu()
        if self.class_means is not None:
            output = self.class_means(output)
        return output, torch.cat([output, *spread], dim=1)

    def _combined(self, embedding: Tensor, side: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the members' mean with its share of the linear map, and how far they lie apart: (B, 1) each, the
        logarithms of the members' variance and of the squared distance from their mean to the map."""
        if not self.members:
            assert self.linear_map is not None
            return self.linear_map(embedding, side), []

        estimates = self.estimates(embedding, side)
        mean, spread = estimates.mean(dim=0), []
        if len(estimates) > 1:
            spread.append(_log_length(estimates.var(dim=0, correction=0)))
        if self.linear_map is None:
            return mean, spread
        linear = self.linear_map(embedding, side)
        return torch.lerp(mean, linear, self.linear_map.share), [*spread, _log_length((mean - linear).square())]

    def _side(self, embedding: Tensor, side_information: Tensor | None) -> Tensor:
        if self.side_information_dim is None:
            return embedding
        assert side_information is not None, "this transformation needs side-information"
        return side_information


def _log_length(squares: Tensor) -> Tensor:
    """(B, D) -> (B, 1): the logarithm of the sum."""
    return squares.sum(dim=1, keepdim=True).clamp(min=LEAST_SQUARE).log()


def _read_plain_names(_: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: object) -> None:
    """Read what was saved of a single member whose weights' names have no number, and of class means that draw every
    item."""
    parts = tuple(f"{prefix}{part}." for part in ("old_branch", "side_branch", "mixer"))
    for name in [name for name in state if name.startswith(parts)]:
        state[f"{prefix}members.0.{name.removeprefix(prefix)}"] = state.pop(name)
    if f"{prefix}class_means.means" in state:
        state.setdefault(f"{prefix}class_means.none_distance", torch.tensor(_NEVER))


class ErrorHead(nn.Module):
    """The squared error that is expected of an output: exp(w·f + b) of f = [output, spread].

    FastFill's σ (Jaeckle et al., ICLR 2023, section 3.2) is linear in h's output; how far the members and the linear
    map lie apart says a little more.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Linear(inputs, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, F) -> (B,) float32, finite where the inputs are."""
        logarithm: Tensor = self.weights(inputs.float())[:, 0]
        return logarithm.clamp(-WIDEST_LOGARITHM, WIDEST_LOGARITHM).exp()


class ClassMeans(nn.Module):
    """Draws an estimate to the class means of the new model: z + share·Σ_c p(c | z)·(m_c - z), where p(c | z) is the
    softmax of -‖z - m_c‖² / temperature over the classes and "none of them", which is at `none_distance` of every z.

    What h cannot know of an image it leaves at its average over the images that look alike to the old model, between
    classes. Where the new model's classes are those that are searched for, their means say what a likely embedding is:
    the estimate of a mixture of Gaussians' centre given z. An item that is far from all means stays where it is.
    """

    means: Tensor  # (C, D)
    temperature: Tensor  # scalars: squared distances, and 0 to 1
    none_distance: Tensor
    share: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, dim))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("none_distance", torch.tensor(_NEVER))
        self.register_buffer("share", torch.zeros(()))

    def forward(self, estimate: Tensor) -> Tensor:
        """(B, D) -> (B, D) float32."""
        estimate = estimate.float()
        squares = estimate.square().sum(dim=1, keepdim=True)
        distances = squares + self.means.square().sum(dim=1) - 2 * estimate @ self.means.T  # (B, C)
        none = self.none_distance.expand(len(estimate), 1)
        likely = torch.softmax(-torch.cat([distances, none], dim=1) / self.temperature, dim=1)[:, :-1]
        return estimate + self.share * (likely @ self.means - likely.sum(dim=1, keepdim=True) * estimate)


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
