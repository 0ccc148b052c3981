"""What h and g are trained on: features that the frozen encoders gave once."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairedFeatures:
    """What a transformation learns from: rows of the same N images under two versions, all on one device."""

    embedding: Tensor  # (N, D_from) float32
    side_information: Tensor | None  # (N, S_from) float32
    target: Tensor  # (N, D_to) float32: the new embedding for h, the new side-information for g
    labels: Tensor | None  # (N,) int64

    def __len__(self) -> int:
        return len(self.embedding)
