"""The narrowest h that is as good as the widest: what `inner_dim="auto"` chooses, on rows that nothing learned from.

An h of inner dimension 512 does a seventh of the arithmetic of one of 2,048. Which one a pair of versions needs cannot
be told before, so that all of `INNER_DIMS` are trained side by side, on the same batches, and compared without labels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from models.judging.references import Standing, standing
from models.normalize import l2_normalize
from models.training.features import PairedFeatures
from models.transformation import Transformation

INNER_DIMS = (256, 512, 1024, 2048)
TOLERANCE = 0.003
LEAST_ROWS = round(1 / TOLERANCE)  # fewer cannot show a difference of the tolerance


@dataclass(frozen=True)
class Width:
    """How an h of one inner dimension does among held-out rows. overlap: the mean share of the ten nearest of new/new
    that it finds too; own_item_first: how often an image finds its own item first; explained: 1 less its
    squared error over that of always answering the mean; all of 1 at best."""

    overlap: float
    own_item_first: float
    explained: float
    multiply_adds: int

    def is_as_good_as(self, other: "Width") -> bool:
        """Whether it is not below the other by more than the tolerance in any metric."""
        return all(
            mine >= theirs - TOLERANCE
            for mine, theirs in (
                (self.overlap, other.overlap),
                (self.own_item_first, other.own_item_first),
                (self.explained, other.explained),
            )
        )


def narrowest(
    candidates: Mapping[int, Transformation], held_out: PairedFeatures, unit_norm: bool
) -> tuple[int, dict[str, dict[str, float]]]:
    """Return the inner dimension of the first of `candidates` (narrowest first, in eval mode) that is as good as the
    last, and what was measured of each. With `unit_norm` the outputs are compared as they are served: at unit norm."""
    found = {inner_dim: _measured(network, held_out, unit_norm) for inner_dim, network in candidates.items()}
    widest = list(found.values())[-1]
    chosen = next(inner_dim for inner_dim, width in found.items() if width.is_as_good_as(widest))
    return chosen, {str(inner_dim): asdict(width) for inner_dim, width in found.items()}


def _measured(network: Transformation, held_out: PairedFeatures, unit_norm: bool) -> Width:
    with torch.inference_mode():
        output = network(held_out.embedding, held_out.side_information).float().cpu().numpy()
    target = held_out.target.float().cpu().numpy()
    if unit_norm:
        output = l2_normalize(output)
    found: Standing = standing(target, output, "l2")
    explained = float("-inf") if found.relative_error is None else 1 - found.relative_error
    return Width(found.overlap, found.own_item_first.at_1, explained, multiply_adds(network))


def multiply_adds(network: Transformation) -> int:
    """Return how many multiplications h does per row."""
    return sum(weight.numel() for name, weight in network.named_parameters() if weight.dim() > 1)
