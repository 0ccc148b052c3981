"""Toys for the tests of training: images of classes that differ in their stripes, under noise, and a small encoder."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.backbones import ConvEncoder
from models.metrics import cmc
from models.preprocessing import Preprocessing
from models.training.data import TrainingImages
from models.training.fitting import embed_images

PREPROCESSING = Preprocessing(12, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PATTERNS = ("across", "checkerboard", "down")


def toy_images(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)) -> TrainingImages:
    """(count, 3, 12, 12) images of some of `PATTERNS`, in turn."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    patterns = torch.stack([(y // 2) % 2, (x // 2 + y // 2) % 2, (x // 2) % 2]).float()
    labels = torch.arange(count) % len(classes)
    values = 0.2 * patterns[list(classes)][labels][:, None] + 0.8 * torch.rand((count, 3, 12, 12), generator=generator)
    pixels = (values * 255).to(torch.uint8)
    names = [PATTERNS[index] for index in classes]
    return TrainingImages(pixels, torch.arange(count), labels, names, PREPROCESSING, f"{count} {seed} {classes}")


def noise(count: int, size: int = 12, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8))


def cut_at(images_seen: int) -> Callable[[int, int, float], None]:
    """Return a progress callback that ends a training as Ctrl-C would."""

    def progress(done: int, total: int, loss: float) -> None:
        if done >= images_seen:
            raise KeyboardInterrupt

    return progress


def small_encoder() -> ConvEncoder:
    return ConvEncoder(8, 16)


def retrieval(queries: nn.Module, images: TrainingImages, gallery: nn.Module | None = None) -> float:
    """CMC top-1 of each image's embedding among the other images', which `gallery` may have embedded."""
    labels = images.labels.numpy()
    asked, searched = (embed_images(network, images).numpy() for network in (queries, gallery or queries))
    return cmc(asked, labels, searched, labels, ks=(1,), self_match=True)[1]
