"""Random views, against slow ways to make the same or what must hold of all of them."""

import pytest
import torch
from torch import Tensor

from models.training.augmentation import contrastive_views, light_views
from tests.unit.models.training.toy_images import noise


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [1, 9, 16])
def test_a_light_view_is_a_shift_of_its_image_or_of_its_mirror_image(size: int, flip: bool) -> None:
    images = noise(24, size)
    shift = max(1, size // 8)

    def shifts(image: Tensor) -> list[Tensor]:
        last = size - 1
        at = [[min(max(start + i, 0), last) for i in range(size)] for start in range(-shift, shift + 1)]
        return [image[:, rows][:, :, columns] for rows in at for columns in at]

    views = light_views(images, flip=flip)

    assert views.dtype == torch.uint8
    mirrored = 0
    for image, view in zip(images, views, strict=True):
        is_shift = any(torch.equal(view, candidate) for candidate in shifts(image))
        is_mirrored = any(torch.equal(view, candidate) for candidate in shifts(image.flip(2)))
        assert is_shift or (flip and is_mirrored)
        mirrored += is_mirrored and not is_shift
    assert (mirrored > 0) == (flip and size > 1)


@pytest.mark.parametrize("flip", [False, True])
def test_contrastive_views_keep_the_form_and_differ(flip: bool) -> None:
    images = noise(32)

    first, second = contrastive_views(images, flip=flip), contrastive_views(images, flip=flip)

    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255
    assert all((one - other).abs().mean() > 1 for one, other in zip(first, second, strict=True))


def test_a_contrastive_view_of_a_slope_is_a_part_of_it_that_may_be_mirrored() -> None:
    slope = torch.arange(32.0).mul(8)[None, None, None].expand(64, 3, 32, 32)

    steps = contrastive_views(slope, flip=True).diff(dim=3)  # colours change too, but nowhere their order

    rising, falling = ((sign * steps >= -1e-3).flatten(1).all(dim=1) for sign in (1, -1))
    assert (rising | falling).all()
    assert 0 < int(rising.sum()) < 64
    assert torch.equal(slope[0, 0, 0], torch.arange(32.0) * 8)


def test_grey_stays_grey_and_a_fifth_of_the_colours_turn_grey() -> None:
    colours = torch.rand(400, 3, 1, 1).mul(200).expand(400, 3, 4, 4)
    greys = torch.rand(50, 1, 1, 1).mul(200).expand(50, 3, 4, 4)

    def spread(images: Tensor) -> Tensor:
        return images.amax(dim=1).sub(images.amin(dim=1)).amax(dim=(1, 2))  # (B,)

    assert float(spread(contrastive_views(greys, flip=True)).max()) < 0.01
    assert 40 < int((spread(contrastive_views(colours, flip=True)) < 0.01).sum()) < 130


def test_scans_lose_a_part_now_and_then_and_keep_their_colours() -> None:
    white = torch.full((200, 3, 16, 16), 255.0)

    views = contrastive_views(white, flip=False)

    lost = (views == 0).float().mean(dim=(1, 2, 3))
    assert ((views == 0) | (views > 254.9)).all()
    assert 30 < int((lost > 0).sum()) < 90
    assert float(lost.max()) < 0.25


def test_the_same_seed_gives_the_same_views() -> None:
    images = noise(8)

    def views(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([light_views(images, flip=True).float(), contrastive_views(images, flip=True)])

    assert torch.equal(views(1), views(1))
    assert not torch.equal(views(1), views(2))
