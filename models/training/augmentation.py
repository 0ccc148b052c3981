"""Random views of images, by kornia."""

import kornia.augmentation as augmentation
from torch import Tensor, nn


def light_views(size: int, *, flip: bool) -> nn.Module:
    """Return the augmentation for classifiers: small shifts, and mirror images where a mirror image is the same
    thing (photographs, not digits). (B, 3, H, W) -> the same shape."""
    layers: list[nn.Module] = [
        augmentation.RandomCrop((size, size), padding=max(1, size // 8), padding_mode="replicate")
    ]
    if flip:
        layers.append(augmentation.RandomHorizontalFlip())
    return nn.Sequential(*layers)


def contrastive_views(size: int, *, flip: bool) -> nn.Module:
    """Return SimCLR's augmentation (its section 3, appendix A) for small images: no blur below 64 pixels; scans keep
    most of their area and lean a little instead of being mirrored."""
    if not flip:
        return nn.Sequential(
            augmentation.RandomAffine(degrees=15.0, translate=(0.1, 0.1), scale=(0.8, 1.2), padding_mode="border"),
            augmentation.RandomErasing(p=0.3, scale=(0.02, 0.15)),
        )
    return nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
    )


def view(augment: nn.Module, images: Tensor) -> Tensor:
    """Return one random view of (B, 3, H, W) images in [0, 1]."""
    result: Tensor = augment(images)
    return result
