"""What would make the second views no test of anything: the same image, another image's, or others at each run."""

from dataclasses import replace

import pytest
import torch

from benchmarks.paper.networks import PREPROCESSING
from benchmarks.paper.views import second_views
from models.training.data import TrainingImages

_COUNT = 600


def _images() -> TrainingImages:
    """Each of one colour of its own; the two halves of an image differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(40, 200, (_COUNT, 3, 1, 1), generator=generator).expand(_COUNT, 3, 32, 32).clone()
    pixels[..., :16] += 40
    labels = torch.arange(_COUNT) % 3
    return TrainingImages(pixels.byte(), torch.arange(_COUNT), labels, ["a", "b", "c"], PREPROCESSING, "these")


def test_the_same_seed_gives_the_same_views_and_another_seed_others() -> None:
    first, again, other = (second_views(_images(), seed) for seed in (0, 0, 1))

    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.digest == again.digest
    assert len({_images().digest, first.digest, other.digest}) == 3


def test_views_draw_nothing_from_the_generator_of_others() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)

    torch.manual_seed(5)
    second_views(_images())

    assert torch.equal(torch.rand(3), expected)


def test_a_view_is_of_the_image_in_its_place_and_not_the_image() -> None:
    images = _images()

    views = second_views(images)

    before, after = (of.pixels.float().mean(dim=(2, 3)) for of in (images, views))
    distances = torch.cdist(after, before)
    own, others = distances.diagonal().mean(), distances.mean()
    assert own < 0.6 * others
    assert torch.equal(views.labels, images.labels)
    assert (views.pixels != images.pixels).flatten(1).any(dim=1).float().mean() > 0.95


@pytest.mark.parametrize("size", [32, 128])
def test_a_part_of_the_views_is_blurred_at_any_size(size: int) -> None:
    checks = ((torch.arange(size)[:, None] + torch.arange(size)) % 2 * 255).expand(200, 3, size, size)
    images = replace(
        _images(), pixels=checks.byte(), rows=torch.arange(200), labels=torch.zeros(200, dtype=torch.int64)
    )

    views = second_views(images).pixels.float()

    steps = (views[..., 1:] - views[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert steps.max() > 4 * steps.min()
