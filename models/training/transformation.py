"""Training of h and g on cached features (paper, section 3.3; released code's configuration).

The released code encodes every image anew in each epoch; here the three frozen encoders have run once, and the features
are what is trained on.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional

from models.training.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from models.training.features import PairedFeatures
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
    recipe: Literal["paper", "default"] = "paper"


def train_transformation(
    pairs: PairedFeatures,
    config: TransformationTraining,
    progress: Progress = no_progress,
    checkpoint: Path | None = None,
) -> Transformation:
    """Return a network trained by mean squared error to `pairs.target`, in eval mode, on the device of `pairs`.

    In the second half of the epochs BatchNorm's statistics are frozen, as in the released code. After each epoch the
    state is written to `checkpoint`, then `progress` is called; what it raises ends the training. A training of the
    same configuration that finds the file goes on from there, to the same weights. Raises ValueError for fewer than two
    samples.
    """
    if len(pairs) < 2:
        raise ValueError("Training a transformation needs at least two samples: BatchNorm cannot learn from one.")
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    side_dim = None if pairs.side_information is None else pairs.side_information.shape[1]
    network = Transformation(pairs.embedding.shape[1], side_dim, pairs.target.shape[1], config.inner_dim)
    network.to(pairs.embedding.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    state = TrainingState(network, optimizer, schedule, generator)
    identity = json.dumps([len(pairs), network.config(), asdict(config)])
    epochs_done = 0 if checkpoint is None else restore_checkpoint(checkpoint, identity, state)
    for epoch in range(epochs_done, config.epochs):
        network.train(epoch < config.epochs // 2)
        for positions in shuffled_batches(len(pairs), config.batch, generator):
            side = None if pairs.side_information is None else pairs.side_information[positions]
            loss = functional.mse_loss(network(pairs.embedding[positions], side), pairs.target[positions])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
        schedule.step()
        if checkpoint is not None:
            save_checkpoint(checkpoint, identity, epoch + 1, state)
        progress(epoch + 1, config.epochs)
    return network.eval()
