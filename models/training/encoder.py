"""Training of φ as a classifier whose last features are the embedding (paper, section 4.1; released code)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.augmentation import light_views, view
from models.training.loop import Progress, lay_out, no_progress, shuffled_batches, warm_up_then_cosine


@dataclass(frozen=True)
class EncoderTraining:
    """The paper's optimiser at the size of these data: SGD with momentum, label smoothing 0.1, cosine."""

    epochs: int = 30
    warm_up_epochs: int = 2
    batch: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    flip: bool = True
    seed: int = 0


def train_encoder(
    encoder: nn.Module,
    embedding_dim: int,
    images: Tensor,
    labels: Tensor,
    normalize: Callable[[Tensor], Tensor],
    config: EncoderTraining,
    progress: Progress = no_progress,
) -> None:
    """Train `encoder` in place on (N, 3, H, W) images in [0, 1] and (N,) int64 labels; leaves it in eval mode.

    `normalize` is the version's preprocessing after the division by 255. The classifier head is dropped.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    head = nn.Linear(embedding_dim, int(labels.max()) + 1, bias=False)
    augment = light_views(images.shape[-1], flip=config.flip)
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *head.parameters()],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    lay_out(encoder, torch.channels_last)
    encoder.train()
    for epoch in range(config.epochs):
        for positions in shuffled_batches(len(images), config.batch, generator):
            views = normalize(view(augment, images[positions])).to(memory_format=torch.channels_last)
            logits = head(encoder(views))  # (b, classes)
            loss = functional.cross_entropy(logits, labels[positions], label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
        schedule.step()
        progress(epoch + 1, config.epochs)
    lay_out(encoder, torch.contiguous_format)
    encoder.eval()
