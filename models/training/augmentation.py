"""Random views of whole batches, a few tensor operations each. Every draw is from torch's generator on the CPU.

Images are (B, 3, S, S) of 0 to 255. Kornia has all of this, but takes eight times as long for SimCLR's views of 32
pixels, most of it to convert colours to HSV and back: on a CPU a fifth of a small network's training.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_GREY = torch.tensor([0.299, 0.587, 0.114])  # how much a channel counts in a colour's brightness


def light_views(images: Tensor, *, flip: bool) -> Tensor:
    """Return a view of each image for a classifier: a shift by up to an eighth of the size, the edges repeated, and a
    mirror image of every other where that is the same thing (photographs, not digits). Of the images' type."""
    count, size = len(images), images.shape[-1]
    shift = max(1, size // 8)
    rows, columns = torch.arange(size) + torch.randint(-shift, shift + 1, (2, count, 1))  # (B, S) each
    if flip:
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    pixels = (size * rows[:, :, None] + columns[:, None, :]).view(count, 1, size * size).to(images.device)
    return images.flatten(2).gather(2, pixels.expand(-1, 3, -1)).view_as(images)


def contrastive_views(images: Tensor, *, flip: bool) -> Tensor:
    """Return a view of each image as SimCLR has them (its section 3 and appendix A), without the blur, which its
    appendix leaves out for small images. Float32.

    Scans (no `flip`) keep most of their area and lean a little instead of being mirrored and coloured, and lose a part.
    """
    count = len(images)
    images = images.float()
    if not flip:
        angle = _uniform(count, -math.pi / 12, math.pi / 12)
        scale = _uniform(count, 0.8, 1.2)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
        return _without_a_part(_resampled(images, turn / scale[:, None, None], _uniform((count, 2), -0.2, 0.2)))
    area, ratio = _uniform(count, 0.2, 1.0), _uniform(count, math.log(3 / 4), math.log(4 / 3)).exp()
    edges = torch.stack([area * ratio, area / ratio], dim=1).sqrt().clamp(max=1.0)  # (B, 2): of the whole, x and y
    centres = (1 - edges) * _uniform((count, 2), -1.0, 1.0)
    edges[:, 0] *= torch.where(torch.rand(count) < 0.5, -1.0, 1.0)  # a negative width mirrors
    return _recoloured(_resampled(images, torch.diag_embed(edges), centres))


def _resampled(images: Tensor, matrices: Tensor, centres: Tensor) -> Tensor:
    """Look at images through (B, 2, 2) matrices and (B, 2) centres, x before y, the image reaching from -1 to 1."""
    theta = torch.cat([matrices, centres[:, :, None]], dim=2).to(images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _without_a_part(images: Tensor) -> Tensor:
    """Set a rectangle in 3 of 10 images to 0."""
    count, size = len(images), images.shape[-1]
    area, ratio = _uniform(count, 0.02, 0.15), _uniform(count, math.log(0.3), math.log(1 / 0.3)).exp()
    halves = torch.stack([area * ratio, area / ratio]).sqrt() * size / 2  # (2, B)
    halves *= torch.rand(count) < 0.3
    centres = torch.rand(2, count) * size
    pixels = torch.arange(size) + 0.5
    across, down = ((pixels - centres[..., None]).abs() < halves[..., None]).to(images.device)  # (B, S) each
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)


def _recoloured(images: Tensor) -> Tensor:
    """Change 8 of 10 images' brightness, contrast, saturation (by up to 0.4) and hue (by up to a tenth of a turn), and
    make 2 of 10 grey.

    All but contrast is one matrix per image. Hue turns about the axis of greys, which HSV's does in effect.
    """
    count = len(images)
    brightness, contrast, saturation = (_uniform(count, 0.6, 1.4)[:, None, None] for _ in range(3))
    to_grey = _GREY.expand(3, 3)
    jitter = (
        brightness * (saturation * torch.eye(3) + (1 - saturation) * to_grey) @ _hue_turns(_uniform(count, -0.1, 0.1))
    )
    is_left = torch.rand(count)[:, None, None] < 0.2
    jitter = torch.where(is_left, torch.eye(3), jitter)
    contrast = torch.where(is_left, 1.0, contrast)
    jitter = torch.where(torch.rand(count)[:, None, None] < 0.2, to_grey @ jitter, jitter)  # (B, 3, 3)
    matrix, contrast = jitter.to(images.device), contrast.to(images.device)
    means = images.mean(dim=(2, 3))[:, :, None]  # (B, 3, 1)
    middle = _GREY.to(images.device) @ (matrix @ means)  # (B, 1): the mean brightness
    colours = contrast * (matrix @ images.flatten(2)) + (1 - contrast) * middle[:, None]
    return colours.clamp(0, 255).view_as(images)


def _hue_turns(turns: Tensor) -> Tensor:
    """(B,) parts of a turn -> (B, 3, 3) rotations about the axis of greys (Rodrigues' formula)."""
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosine, sine = ((2 * math.pi * turns).cos()[:, None, None], (2 * math.pi * turns).sin()[:, None, None])
    return cosine * torch.eye(3) + sine * cross + (1 - cosine) * axis


def _uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(shape) * (high - low) + low
