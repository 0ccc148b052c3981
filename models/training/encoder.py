"""Training of φ as a classifier whose last features are the embedding (paper, section 4.1; released code)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.backbones import Backbone
from models.durable import file_sha256
from models.losses import SmoothedSoftmax
from models.training.augmentation import light_views
from models.training.checkpoints import CHECKPOINT, load_checkpoint, part_of
from models.training.data import TrainingImages
from models.training.fitting import IN_MEMORY, Run, Trained, Training, encode, fit, settle_precision

ClassifierLoss = Literal["softmax", "arcface"]


class NotCompatible(ValueError):
    """The old encoder's training cannot be one to be compatible with; the message says why."""


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(Training):
    """The paper's optimiser at the size of these data: SGD with momentum, label smoothing 0.1, cosine.

    `loss` "arcface" (Deng et al., CVPR 2019) is the paper's for faces. With `mixup` above 0, images and their losses
    are mixed in pairs, in proportions drawn from Beta(mixup, mixup) (Zhang et al., ICLR 2018).
    """

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    loss: ClassifierLoss = "softmax"
    label_smoothing: float = 0.1  # of the softmax
    mixup: float = 0.0


def train_encoder(
    build: Callable[[], Backbone],
    images: TrainingImages,
    config: EncoderTraining,
    run: Run = IN_MEMORY,
    compatible_with: Path | None = None,
) -> Trained:
    """Train the network that `build` gives, called under the training's seed. Its classifier head stays in the
    checkpoint.

    With `compatible_with`, the folder of an old encoder's finished training, the new one's embeddings can be searched
    among the old one's (BCT, Shen et al., CVPR 2020): the influence loss, equation 5 with λ = 1, is added, on the
    images whose class the old training knew by name. Raises NotCompatible, and what `fit` raises.
    """
    if compatible_with is not None and config.mixup:
        raise NotCompatible("Mixup has no place in backward-compatible training: the old classifier knows no mixtures.")

    config = settle_precision(config, run)
    torch.manual_seed(config.seed)
    network = build()
    head = _classifier(config.loss, config.label_smoothing, network.embedding_dim, len(images.classes))
    learned = nn.ModuleDict({"network": network, "head": head}).to(run.device)
    old = None if compatible_with is None else OldClassifier(compatible_with, network.embedding_dim, images, run)

    def loss_of(positions: Tensor) -> Tensor:
        views = light_views(images.take(positions).to(run.device), flip=config.flip)
        labels = images.labels[positions].to(run.device)
        if config.mixup:
            views, partners, share = _mixed(views, config.mixup)
            embedding = encode(network, views, images.preprocessing, config.precision)
            mixed: Tensor = share * head(embedding, labels) + (1 - share) * head(embedding, labels[partners])
            return mixed
        embedding = encode(network, views, images.preprocessing, config.precision)
        loss: Tensor = head(embedding, labels)
        return loss if old is None else loss + old.influence_loss(embedding, labels)

    optimizer = torch.optim.SGD(
        learned.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    return fit(learned, optimizer, loss_of, images, config, run, None if old is None else old.digest)


def _mixed(views: Tensor, mixup: float) -> tuple[Tensor, Tensor, float]:
    """Return (B, 3, S, S) views mixed in pairs, the (B,) position of each one's partner, and the share of the first."""
    share = float(torch.distributions.Beta(mixup, mixup).sample())
    partners = torch.randperm(len(views)).to(views.device)
    return share * views + (1 - share) * views[partners], partners, share


def _classifier(loss: ClassifierLoss, label_smoothing: float, embedding_dim: int, classes: int) -> nn.Module:
    """Return a module with weights, ((B, D), (B,) labels) -> the mean loss."""
    if loss == "softmax":
        return SmoothedSoftmax(embedding_dim, classes, label_smoothing)
    from pytorch_metric_learning.losses import ArcFaceLoss  # takes seconds to import

    arcface: nn.Module = ArcFaceLoss(classes, embedding_dim)
    return arcface


class OldClassifier:
    """The frozen head of a finished training, and which of the new classes it knows by name."""

    def __init__(self, folder: Path, embedding_dim: int, images: TrainingImages, run: Run) -> None:
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        if checkpoint is None:
            raise NotCompatible(f"{folder} has no checkpoint of an encoder's training.")
        configuration = checkpoint["configuration"]
        training, old_dim = configuration["training"], configuration["network"]["config"]["embedding_dim"]
        classes = {name: index for index, name in enumerate(configuration["images"]["classes"])}
        if training["kind"] != EncoderTraining.__name__:
            raise NotCompatible(f"{folder} holds a training without a classifier ({training['kind']}).")
        if checkpoint["epoch"] < training["epochs"]:
            raise NotCompatible(f"The training in {folder} has not finished.")
        if old_dim != embedding_dim:
            raise NotCompatible(f"The old embeddings have {old_dim} dimensions, the new ones {embedding_dim}.")
        if not classes.keys() & set(images.classes):
            raise NotCompatible(f"The training in {folder} had none of the classes of these images.")

        self.digest = file_sha256(folder / CHECKPOINT)
        self.head = _classifier(training["loss"], training["label_smoothing"], old_dim, len(classes))
        self.head.load_state_dict(part_of(checkpoint, "head"))
        self.head.requires_grad_(False).to(run.device)
        # (new classes,) their index among the old ones, or -1
        self.old_index = torch.tensor([classes.get(name, -1) for name in images.classes], device=run.device)

    def influence_loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """The old classifier's loss of (B, D) new embeddings, over those of the (B,) new labels that it knows."""
        old_labels = self.old_index[labels]
        known = old_labels >= 0
        if not known.any():
            return embedding.new_zeros(())
        loss: Tensor = self.head(embedding[known], old_labels[known])
        return loss
