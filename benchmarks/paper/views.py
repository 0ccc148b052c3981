"""A second view of each image, as a query for the image itself."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.training.augmentation import contrastive_views
from models.training.data import TrainingImages

_BLURRED = 0.5  # the share of the images
_DEVIATIONS = (0.003, 0.03)  # of the blur, as a share of the image's size: at 32 pixels, up to one
_BATCH = 500


def second_views(images: TrainingImages, seed: int = 0) -> TrainingImages:
    """Return a crop of a fifth to all of each image, every other one mirrored, 8 of 10 recoloured (SimCLR's views:
    Chen et al., ICML 2020, appendix A) and half of them blurred. The same seed gives the same views."""
    parts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for positions in torch.split(torch.arange(len(images)), _BATCH):
            views = _blurred(contrastive_views(images.take(positions), flip=True))
            parts.append(views.round().clamp(0, 255).byte())
    description = f"{images.digest}, second views by seed {seed}"
    return replace(
        images,
        pixels=torch.cat(parts),
        rows=torch.arange(len(images)),
        digest=hashlib.sha256(description.encode()).hexdigest(),
    )


def _blurred(images: Tensor) -> Tensor:
    """(B, 3, S, S) float32 -> the same, a share of them through a Gaussian of a deviation drawn for each."""
    count, channels, size, _ = images.shape
    low, high = (deviation * size for deviation in _DEVIATIONS)
    deviations = low + (high - low) * torch.rand(count)
    radius = max(1, round(3 * high))
    offsets = torch.arange(-radius, radius + 1)
    kernels = (-offsets.square() / (2 * deviations.square()[:, None])).softmax(dim=1)  # (B, K)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # (3B, 1, K)
    planes = images.reshape(1, count * channels, size, size)
    planes = functional.pad(planes, (radius,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernels[:, :, None], groups=count * channels)
    planes = functional.conv2d(planes, kernels[..., None], groups=count * channels)
    is_blurred = (torch.rand(count) < _BLURRED)[:, None, None, None]
    return torch.where(is_blurred, planes.view_as(images), images)
