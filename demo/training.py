"""Training of everything that an upgrade needs: φ_1, ψ_1, φ_2, ψ_2, h and g."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from demo.data import LabelledImages
from models.backbones import ConvEncoder, SmallResNet
from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess_batch
from models.training.encoder import EncoderTraining, train_encoder
from models.training.loop import Progress
from models.training.simclr import SimclrTraining, train_simclr
from models.training.transformation import TransformationTraining, train_transformation
from models.transformation import Transformation

# Called with a step's name; gives that step's progress callback.
Step = Callable[[str], Progress]
_ENCODE_BATCH = 512


@dataclass(frozen=True)
class Recipe:
    """How large the networks are and how long they learn."""

    size: int
    embedding_dim: int
    old_encoder: Callable[[], nn.Module]
    new_encoder: Callable[[], nn.Module]
    encoder: EncoderTraining
    simclr: SimclrTraining
    transformation: TransformationTraining

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


DIGITS = Recipe(
    size=16,
    embedding_dim=64,
    old_encoder=lambda: ConvEncoder(16, 64),
    new_encoder=lambda: ConvEncoder(32, 64),
    encoder=EncoderTraining(epochs=20, flip=False),
    simclr=SimclrTraining(epochs=60, flip=False),
    transformation=TransformationTraining(epochs=80, batch=128),
)

PHOTOGRAPHS = Recipe(
    size=32,
    embedding_dim=128,
    old_encoder=lambda: ConvEncoder(24, 128),
    new_encoder=lambda: SmallResNet(16, 1, 128),
    encoder=EncoderTraining(epochs=3, batch=256, learning_rate=0.2),
    simclr=SimclrTraining(epochs=2, batch=512),
    transformation=TransformationTraining(epochs=4),
)


@dataclass(frozen=True)
class Networks:
    """Everything trained, ready to be registered."""

    old_encoder: nn.Module
    old_side_information: nn.Module
    new_encoder: nn.Module
    new_side_information: nn.Module
    h: Transformation
    g: Transformation


def train_everything(images: LabelledImages, recipe: Recipe, step: Step) -> Networks:
    """Train the old version on the first half of the classes, and the new one on all of them.

    ψ may use only what its own version's training had: SimCLR on the old, or on all images. h and g learn from the
    features of all training images (the paper's D_new).
    """
    pixels = _pixels(images, recipe.size)
    labels = torch.from_numpy(images.labels)
    old = labels < len(images.classes) // 2
    dim = recipe.embedding_dim

    old_encoder, new_encoder = recipe.old_encoder(), recipe.new_encoder()
    train_encoder(old_encoder, dim, pixels[old], labels[old], _normalize, recipe.encoder, step("train φ_1"))
    train_encoder(new_encoder, dim, pixels, labels, _normalize, recipe.encoder, step("train φ_2"))
    old_side, new_side = recipe.old_encoder(), recipe.old_encoder()
    train_simclr(old_side, dim, pixels[old], _normalize, recipe.simclr, step("train ψ_1"))
    train_simclr(new_side, dim, pixels, _normalize, replace(recipe.simclr, seed=1), step("train ψ_2"))

    features = [_features(network, pixels) for network in (old_encoder, old_side, new_encoder, new_side)]
    h = train_transformation(features[0], features[1], features[2], recipe.transformation, step("train h"))
    g = train_transformation(features[0], features[1], features[3], recipe.transformation, step("train g"))
    return Networks(old_encoder, old_side, new_encoder, new_side, h, g)


def embed(encoder: nn.Module, images: LabelledImages, recipe: Recipe) -> np.ndarray:
    """Return the (N, D) float32 embeddings of images, computed here."""
    return _features(encoder, _pixels(images, recipe.size)).numpy()


def _pixels(images: LabelledImages, size: int) -> Tensor:
    """Return (N, 3, size, size) float32 in [0, 1], by the service's own preprocessing."""
    unit = Preprocessing(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    blocks = [
        preprocess_batch([decode_image(data) for data in images.files[start : start + _ENCODE_BATCH]], unit)
        for start in range(0, len(images), _ENCODE_BATCH)
    ]
    return torch.from_numpy(np.concatenate(blocks))


def _normalize(pixels: Tensor) -> Tensor:
    return (pixels - 0.5) / 0.5


def _features(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(_normalize(part)) for part in torch.split(pixels, _ENCODE_BATCH)])
