"""Training of ψ by SimCLR (Chen et al., ICML 2020), the paper's best kind of side-information (table 6): no labels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.losses import nt_xent
from models.side_information import SimCLR
from models.training.augmentation import contrastive_views, view
from models.training.loop import Progress, lay_out, no_progress, shuffled_batches, warm_up_then_cosine


@dataclass(frozen=True)
class SimclrTraining:
    """SimCLR at the size of these data: Adam instead of LARS, which is for batches of thousands."""

    epochs: int = 50
    warm_up_epochs: int = 2
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    temperature: float = 0.2
    projection_dim: int = 64
    flip: bool = True
    seed: int = 0


def train_simclr(
    encoder: nn.Module,
    side_information_dim: int,
    images: Tensor,
    normalize: Callable[[Tensor], Tensor],
    config: SimclrTraining,
    progress: Progress = no_progress,
) -> None:
    """Train `encoder` in place on (N, 3, H, W) images in [0, 1]; leaves it in eval mode. The head is dropped."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = SimCLR(encoder, side_information_dim, config.projection_dim)
    augment = contrastive_views(images.shape[-1], flip=config.flip)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    lay_out(model, torch.channels_last)
    model.train()
    for epoch in range(config.epochs):
        for positions in shuffled_batches(len(images), config.batch, generator):
            batch = images[positions]
            both = torch.cat([view(augment, batch), view(augment, batch)])  # (2b, 3, H, W)
            first, second = model(normalize(both).to(memory_format=torch.channels_last)).chunk(2)
            loss = nt_xent(first, second, config.temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
        schedule.step()
        progress(epoch + 1, config.epochs)
    lay_out(encoder, torch.contiguous_format)
    encoder.eval()
