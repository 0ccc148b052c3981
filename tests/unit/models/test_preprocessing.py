"""Preprocessing: the parameters are checked with sentences, and the values are those of an obvious computation."""

import json
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


def test_a_centre_crop_without_resize_takes_the_size() -> None:
    implicit = Preprocessing(8, MEAN, STD, crop="center")

    assert implicit.resize == 8
    assert np.array_equal(
        preprocess(noise(40, 20), implicit),
        preprocess(noise(40, 20), Preprocessing(8, MEAN, STD, resize=8, crop="center")),
    )


@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (300, 7), (7, 300), (9, 8)])
def test_any_shape_of_image_gives_the_declared_shape(size: tuple[int, int], crop: Any) -> None:
    values = preprocess(noise(*size), Preprocessing(8, MEAN, STD, resize=9, crop=crop))

    assert values.shape == (3, 8, 8)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("crop", ["none", "center"])
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
        ({"resize": 7, "crop": "center"}, "resize must be a whole number from 8"),
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
