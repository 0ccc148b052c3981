"""Training of h and g on cached features (paper, section 3.3; released code's configuration).

The released code encodes every image anew in each epoch; here the three frozen encoders have run once, and the features
are what is trained on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.training.loop import Progress, no_progress, shuffled_batches, warm_up_then_cosine
from models.transformation import Transformation


@dataclass(frozen=True)
class TransformationTraining:
    """The released code's settings."""

    epochs: int = 80
    warm_up_epochs: int = 5
    batch: int = 1024
    learning_rate: float = 5e-4
    weight_decay: float = 2**-15
    inner_dim: int = 2048
    seed: int = 0


def train_transformation(
    embedding: Tensor,
    side_information: Tensor | None,
    target: Tensor,
    config: TransformationTraining,
    progress: Progress = no_progress,
) -> Transformation:
    """Return a network trained by mean squared error from (N, D_from) and (N, S) to (N, D_to), all float32.

    With φ_new as `target` it is h, with ψ_new it is g. In the second half of the epochs BatchNorm's statistics are
    frozen, as in the released code. Returned in eval mode. Raises ValueError for fewer than two samples.
    """
    if len(embedding) < 2:
        raise ValueError("Training a transformation needs at least two samples: BatchNorm cannot learn from one.")
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    side_dim = None if side_information is None else side_information.shape[1]
    network = Transformation(embedding.shape[1], side_dim, target.shape[1], config.inner_dim)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    for epoch in range(config.epochs):
        network.train(epoch < config.epochs // 2)
        for positions in shuffled_batches(len(embedding), config.batch, generator):
            side = None if side_information is None else side_information[positions]
            loss = functional.mse_loss(network(embedding[positions], side), target[positions])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
        schedule.step()
        progress(epoch + 1, config.epochs)
    return network.eval()
