"""Training of everything that an upgrade needs: φ_1, ψ_1, φ_2, ψ_2, h and g."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from demo.data import LabelledImages
from models.backbones import Backbone, ConvEncoder, SmallResNet
from models.image_sets import Classes
from models.preprocessing import Preprocessing
from models.training.data import TrainingImages, decode_images
from models.training.encoder import EncoderTraining, train_encoder
from models.training.features import PairedFeatures
from models.training.fitting import Run, embed_images
from models.training.loop import EpochProgress, Progress
from models.training.side_information import SimclrTraining, train_side_information
from models.training.transformation import TransformationTraining, train_transformation
from models.transformation import Transformation

# Called with a step's name; gives that step's progress callback.
Step = Callable[[str], Progress]


@dataclass(frozen=True)
class Recipe:
    """How large the networks are and how long they learn."""

    size: int
    embedding_dim: int
    old_encoder: Callable[[], Backbone]
    new_encoder: Callable[[], Backbone]
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
    paper_h: Transformation  # by the paper's recipe, to compare with


def train_everything(images: LabelledImages, recipe: Recipe, step: Step) -> Networks:
    """Train the old version on the first half of the classes, and the new one on all of them.

    ψ may use only what its own version's training had: SimCLR on the old, or on all images. h and g learn from the
    features of all training images (the paper's D_new).
    """
    all_images = _decoded(images, recipe)
    old_images = all_images.of_classes(range(len(images.classes) // 2))
    build_old, build_new = recipe.old_encoder, recipe.new_encoder

    old_encoder = train_encoder(build_old, old_images, recipe.encoder, _run(step("train φ_1"))).network
    new_encoder = train_encoder(build_new, all_images, recipe.encoder, _run(step("train φ_2"))).network
    old_simclr, new_simclr = recipe.simclr, replace(recipe.simclr, seed=1)
    old_side = train_side_information(build_old, old_images, old_simclr, _run(step("train ψ_1"))).network
    new_side = train_side_information(build_old, all_images, new_simclr, _run(step("train ψ_2"))).network

    features = [embed_images(network, all_images) for network in (old_encoder, old_side, new_encoder, new_side)]
    embedding, side, new_embedding, new_side_information = features
    h_pairs = PairedFeatures(embedding, side, new_embedding, all_images.labels)
    g_pairs = PairedFeatures(embedding, side, new_side_information, labels=None)
    h = train_transformation(h_pairs, recipe.transformation, _epochs(step("train h")), with_uncertainty=True).network
    g = train_transformation(g_pairs, recipe.transformation, _epochs(step("train g"))).network
    as_the_paper = replace(recipe.transformation, recipe="paper")
    paper_h = train_transformation(h_pairs, as_the_paper, _epochs(step("train h, paper's recipe"))).network
    return Networks(old_encoder, old_side, new_encoder, new_side, h, g, paper_h)


def embed(encoder: nn.Module, images: LabelledImages, recipe: Recipe) -> np.ndarray:
    """Return the (N, D) float32 embeddings of images, computed here."""
    return embed_images(encoder, _decoded(images, recipe)).numpy()


def _decoded(images: LabelledImages, recipe: Recipe) -> TrainingImages:
    files = ((f"image {position}", data) for position, data in enumerate(images.files))
    return decode_images(files, Classes(images.labels, images.classes), recipe.preprocessing)


def _run(progress: Progress) -> Run:
    return Run(progress=lambda done, total, _loss: progress(done, total))


def _epochs(progress: Progress) -> EpochProgress:
    return lambda done, total, _losses: progress(done, total)
