"""Training of ψ, in the kinds of the paper's table 6: SimCLR, which is the best, an autoencoder, and the old encoder
trained again with another seed, with Mixup or without.

ψ may use only what its own version's training had. SimCLR and the autoencoder use no labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones import Backbone
from models.losses import nt_xent
from models.side_information import Decoder, ProjectionHead
from models.training.augmentation import contrastive_views, light_views
from models.training.data import TrainingImages
from models.training.encoder import EncoderTraining, train_encoder
from models.training.fitting import IN_MEMORY, Run, Trained, Training, encode, fit, settle_precision, standardized

SideInformationKind = Literal["simclr", "autoencoder", "alternate", "alternate-mixup"]


@dataclass(frozen=True, kw_only=True)
class SimclrTraining(Training):
    """SimCLR (Chen et al., ICML 2020) at the size of these data: Adam instead of LARS, which is for batches of
    thousands."""

    epochs: int = 50
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    temperature: float = 0.2
    projection_dim: int = 64


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(Training):
    """An autoencoder by the mean squared error of normalised pixels; the paper says L2 and no more."""

    epochs: int = 30
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


SideInformationTraining = SimclrTraining | AutoencoderTraining | EncoderTraining
# What a kind is, by its name in the table. The alternate model's seed must differ from the old encoder's.
SIDE_INFORMATION: dict[SideInformationKind, SideInformationTraining] = {
    "simclr": SimclrTraining(),
    "autoencoder": AutoencoderTraining(),
    "alternate": EncoderTraining(seed=1),
    "alternate-mixup": EncoderTraining(seed=1, mixup=1.0),
}


def train_side_information(
    build: Callable[[], Backbone], images: TrainingImages, config: SideInformationTraining, run: Run = IN_MEMORY
) -> Trained:
    """Train the network that `build` gives, called under the training's seed, as the settings' class says.

    Raises what `fit` and `train_encoder` raise.
    """
    if isinstance(config, EncoderTraining):
        return train_encoder(build, images, config, run)
    if isinstance(config, SimclrTraining):
        return _train_simclr(build, images, config, run)
    return _train_autoencoder(build, images, config, run)


def _train_simclr(build: Callable[[], Backbone], images: TrainingImages, config: SimclrTraining, run: Run) -> Trained:
    config = settle_precision(config, run)
    torch.manual_seed(config.seed)
    network = build()
    head = ProjectionHead(network.embedding_dim, config.projection_dim)
    learned = nn.ModuleDict({"network": network, "head": head}).to(run.device)

    def loss_of(positions: Tensor) -> Tensor:
        batch = images.take(positions).to(run.device)
        both = contrastive_views(torch.cat([batch, batch]), flip=config.flip)  # (2b, 3, S, S)
        first, second = head(encode(network, both, images.preprocessing, config.precision)).chunk(2)
        return nt_xent(first, second, config.temperature)

    return fit(learned, _adam(learned, config), loss_of, images, config, run)


def _train_autoencoder(
    build: Callable[[], Backbone], images: TrainingImages, config: AutoencoderTraining, run: Run
) -> Trained:
    config = settle_precision(config, run)
    torch.manual_seed(config.seed)
    network = build()
    decoder = Decoder(network.embedding_dim, images.preprocessing.height)
    learned = nn.ModuleDict({"network": network, "decoder": decoder}).to(run.device)

    def loss_of(positions: Tensor) -> Tensor:
        views = light_views(images.take(positions).to(run.device), flip=config.flip)
        decoded = decoder(encode(network, views, images.preprocessing, config.precision))
        return functional.mse_loss(decoded, standardized(views, images.preprocessing))

    return fit(learned, _adam(learned, config), loss_of, images, config, run)


def _adam(learned: nn.Module, config: Training) -> torch.optim.Adam:
    return torch.optim.Adam(learned.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
