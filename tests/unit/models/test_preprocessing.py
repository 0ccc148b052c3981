"""Preprocessing: the parameters are checked with sentences, and the values are those of an obvious computation."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.preprocessing import Preprocessing, preprocess, preprocess_batch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalized(image: Image.Image) -> NDArray[np.float64]:
    """The slow version: one value at a time."""
    output = np.zeros((3, image.height, image.width))
    for channel in range(3):
        for y in range(image.height):
            for x in range(image.width):
                value = np.asarray(image)[y, x, channel]
                output[channel, y, x] = (value / 255 - MEAN[channel]) / STD[channel]
    return output


def test_an_image_of_the_right_size_is_only_normalized() -> None:
    image = noise(8, 8)

    values = preprocess(image, Preprocessing(8, MEAN, STD))

    assert values.shape == (3, 8, 8)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert np.allclose(values, normalized(image), atol=1e-5)


def test_without_a_crop_the_image_is_squeezed_into_the_square() -> None:
    image = noise(20, 10)

    values = preprocess(image, Preprocessing(8, MEAN, STD, interpolation="bicubic"))

    assert np.allclose(values, normalized(image.resize((8, 8), Image.Resampling.BICUBIC)), atol=1e-5)


def test_a_centre_crop_follows_the_resize_of_the_shorter_edge() -> None:
    image = noise(40, 20)

    values = preprocess(image, Preprocessing(8, MEAN, STD, resize=10, crop="center"))

    resized = image.resize((20, 10), Image.Resampling.BILINEAR)
    assert np.allclose(values, normalized(resized.crop((6, 1, 14, 9))), atol=1e-5)


def torchvision_resize(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """`torchvision.transforms.functional.resize` of a Pillow image to one number."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    return image.resize((new_width, new_height), resampling)


def torchvision_center_crop(image: Image.Image, size: int) -> Image.Image:
    """`torchvision.transforms.functional.center_crop`, which pads first where the image is smaller."""
    width, height = image.size
    if size > width or size > height:
        left = (size - width) // 2 if size > width else 0
        top = (size - height) // 2 if size > height else 0
        right = (size - width + 1) // 2 if size > width else 0
        bottom = (size - height + 1) // 2 if size > height else 0
        padded = Image.new("RGB", (left + width + right, top + height + bottom))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))  # noqa: RUF046 - as published
    return image.crop((left, top, left + size, top + size))


def tensor_of(image: Image.Image) -> NDArray[np.float64]:
    """`ToTensor` and `Normalize`."""
    values = np.asarray(image).astype(np.float64).transpose(2, 0, 1) / 255
    channels = (np.array(numbers)[:, None, None] for numbers in (MEAN, STD))
    mean, std = channels
    return np.asarray((values - mean) / std)


RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


def random_cases(count: int, longest: int) -> Iterator[tuple[Image.Image, int, int, Any]]:
    """Images of random sizes, with a crop's size, a resize and an interpolation."""
    random = np.random.default_rng(1)
    for number in range(count):
        width, height = random.integers(1, longest, 2)
        size, resize = (int(edge) for edge in random.integers(1, 40, 2))
        names = list(RESAMPLING)
        yield noise(int(width), int(height), number), size, resize, names[number % len(names)]


def test_a_centre_crop_is_torchvisions_for_all_sizes_and_interpolations() -> None:
    for image, size, resize, interpolation in random_cases(300, 120):
        for shorter in (resize, size):  # also where nothing but the aspect changes
            parameters = Preprocessing(size, MEAN, STD, shorter, "center", interpolation)

            values = preprocess(image, parameters)

            resized = torchvision_resize(image, shorter, RESAMPLING[interpolation])
            expected = tensor_of(torchvision_center_crop(resized, size))
            assert np.abs(values - expected).max() < 1e-3, (image.size, parameters)


def test_a_squash_before_the_crop_is_torchvisions_resize_to_two_numbers() -> None:
    for image, size, resize, interpolation in random_cases(300, 120):
        parameters = Preprocessing(size, MEAN, STD, resize, "squash", interpolation)

        values = preprocess(image, parameters)

        resized = image.resize((resize, resize), RESAMPLING[interpolation])
        assert np.abs(values - tensor_of(torchvision_center_crop(resized, size))).max() < 1e-3, parameters


def test_a_resize_before_the_squeeze_is_torchvisions() -> None:
    for image, size, resize, interpolation in random_cases(100, 120):
        parameters = Preprocessing(size, MEAN, STD, resize, "none", interpolation)

        values = preprocess(image, parameters)

        resized = torchvision_resize(image, resize, RESAMPLING[interpolation])
        squeezed = resized.resize((size, size), RESAMPLING[interpolation])
        assert np.abs(values - tensor_of(squeezed)).max() < 1e-3, parameters


def test_an_image_smaller_than_the_crop_lies_on_black() -> None:
    values = preprocess(Image.new("RGB", (3, 3), (255, 255, 255)), Preprocessing(6, MEAN, STD, 3, "center"))

    black, white = ((np.array(value) - MEAN) / STD for value in (0, 1))
    assert np.allclose(values[:, 1:4, 1:4], white[:, None, None])
    assert np.allclose(values[:, 0], black[:, None])
    assert np.allclose(values[:, 4:], black[:, None, None])


def test_of_a_long_line_the_middle_is_cut_as_from_the_whole() -> None:
    line = noise(9_000, 40)
    parameters = Preprocessing(64, MEAN, STD, 300, "center", "lanczos")

    values = preprocess(line, parameters)

    whole = torchvision_resize(line, 300, Image.Resampling.LANCZOS)
    expected = tensor_of(torchvision_center_crop(whole, 64))
    assert whole.width * whole.height > 2**24
    assert np.abs(values - expected).max() < 1.01 / 255 / min(STD)


def test_a_grey_image_is_one_of_three_channels_alike() -> None:
    grey = noise(50, 30).convert("L")
    parameters = Preprocessing(8, MEAN, STD, resize=10, crop="center", interpolation="bicubic")

    assert np.array_equal(preprocess(grey, parameters), preprocess(grey.convert("RGB"), parameters))


def test_a_centre_crop_without_resize_takes_the_size() -> None:
    implicit = Preprocessing(8, MEAN, STD, crop="center")

    assert implicit.resize == 8
    assert np.array_equal(
        preprocess(noise(40, 20), implicit),
        preprocess(noise(40, 20), Preprocessing(8, MEAN, STD, resize=8, crop="center")),
    )


@pytest.mark.parametrize("crop", ["none", "center", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (300, 7), (7, 300), (9, 8)])
def test_any_shape_of_image_gives_the_declared_shape(size: tuple[int, int], crop: Any) -> None:
    values = preprocess(noise(*size), Preprocessing(8, MEAN, STD, resize=9, crop=crop))

    assert values.shape == (3, 8, 8)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("crop", ["none", "center", "squash"])
def test_a_line_of_pixels_does_not_take_gigabytes(crop: Any) -> None:
    line = Image.new("RGB", (2_000_000, 1), (255, 0, 0))

    values = preprocess(line, Preprocessing(1024, MEAN, STD, resize=2048, crop=crop))

    assert values.shape == (3, 1024, 1024)


def test_a_batch_is_its_images_one_by_one() -> None:
    images = [noise(10 + number, 12, number) for number in range(5)]
    parameters = Preprocessing(8, MEAN, STD)

    batch = preprocess_batch(images, parameters)

    assert batch.dtype == np.float32
    assert np.array_equal(batch, np.stack([preprocess(image, parameters) for image in images]))
    assert preprocess_batch([], parameters).shape == (0, 3, 8, 8)


def test_parameters_survive_json() -> None:
    parameters = Preprocessing(8, MEAN, STD, resize=10, crop="center", interpolation="lanczos")

    assert Preprocessing.from_json(json.loads(json.dumps(parameters.to_json()))) == parameters


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 0}, "size must be"),
        ({"size": 1025}, "from 1 to 1024"),
        ({"size": 8.0}, "whole number"),
        ({"size": True}, "whole number"),
        ({"size": "8"}, "whole number"),
        ({"mean": [0.5, 0.5]}, "mean must be three finite numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean must be three"),
        ({"mean": "abc"}, "mean must be three"),
        ({"mean": None}, "mean must be three"),
        ({"mean": [0, 0, [1]]}, "mean must be three"),
        ({"std": [0.5, 0.5, float("inf")]}, "std must be three"),
        ({"std": [0.5, 0.5, 0]}, "above 0"),
        ({"std": [0.5, 0.5, -1]}, "above 0"),
        ({"crop": "middle"}, "crop must be"),
        ({"crop": ["none"]}, "crop must be"),
        ({"interpolation": "area"}, "interpolation must be one of nearest"),
        ({"interpolation": {}}, "interpolation must be"),
        ({"resize": 0}, "resize must be"),
        ({"resize": 10**9}, "resize must be"),
        ({"colour": "BGR"}, "has no 'colour'"),
    ],
)
def test_parameters_out_of_range_are_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    values = {"size": 8, "mean": list(MEAN), "std": list(STD), **changes}

    with pytest.raises(ValueError, match=sentence):
        Preprocessing.from_json(values)


@pytest.mark.parametrize("name", ["size", "mean", "std"])
def test_what_is_missing_is_named(name: str) -> None:
    values = {"size": 8, "mean": MEAN, "std": STD}
    del values[name]

    with pytest.raises(ValueError, match=f"needs {name}"):
        Preprocessing.from_json(values)
