"""Reading labelled images once, and choosing classes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.image_sets import NoImages, find_images
from models.preprocessing import Preprocessing, preprocess
from models.training.data import TrainingImages, decode_images, read_images

PREPROCESSING = Preprocessing(6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


def png(shade: int, width: int = 9, height: int = 7) -> bytes:
    pixels = np.random.default_rng(shade).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["b/2.png", "a/10.png", "a/9.PNG", "b/x.jpg", "c/0.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "images" / "a" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_pixels_are_those_of_the_services_preprocessing(folder: Path, tmp_path: Path) -> None:
    source = find_images(folder)

    images = read_images(source, PREPROCESSING, tmp_path / "cache")

    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    for position, image in enumerate(source.read()):
        expected = preprocess(Image.open(io.BytesIO(image.data)).convert("RGB"), PREPROCESSING)
        found = (images.take(torch.tensor([position]))[0] / 255 - mean) / std
        assert np.allclose(found.numpy(), expected, atol=1e-5)
    assert images.labels.tolist() == [0, 0, 1, 1, 2]


def test_images_are_read_once_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    reads: list[int] = []

    def read(preprocessing: Preprocessing = PREPROCESSING) -> TrainingImages:
        return read_images(
            find_images(folder), preprocessing, tmp_path / "cache", lambda done, total: reads.append(total)
        )

    first, again = read(), read()
    assert reads == [5]
    assert torch.equal(first.pixels, again.pixels)
    assert first.digest == again.digest

    read(Preprocessing(6, mean=(0, 0, 0), std=(1, 1, 1)))  # the same pixels
    assert reads == [5]
    other_size = read(Preprocessing(7, mean=(0, 0, 0), std=(1, 1, 1)))
    assert reads == [5, 5]
    (folder / "a" / "10.png").write_bytes(png(77))
    changed = read()
    assert reads == [5, 5, 5]

    assert len({first.digest, other_size.digest, changed.digest}) == 3
    assert len(list((tmp_path / "cache").glob("*.npy"))) == len(list((tmp_path / "cache").glob("*.digest"))) == 3


def test_images_in_memory_are_the_same_as_in_the_cache(folder: Path, tmp_path: Path) -> None:
    cached = read_images(find_images(folder), PREPROCESSING, tmp_path)
    in_memory = decoded(folder)

    assert torch.equal(cached.pixels, in_memory.pixels)
    assert cached.digest == in_memory.digest


def test_a_damaged_image_is_named_and_leaves_no_entry(folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "2.png").write_bytes(png(0)[:40])

    with pytest.raises(NoImages, match=r"b/2\.png: The "):
        read_images(find_images(folder), PREPROCESSING, tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == []


def decoded(folder: Path) -> TrainingImages:
    source = find_images(folder)
    return decode_images(((image.where, image.data) for image in source.read()), source.classes(), PREPROCESSING)


@pytest.fixture
def images(folder: Path) -> TrainingImages:
    return decoded(folder)


def test_chosen_classes_are_numbered_anew(images: TrainingImages) -> None:
    chosen = images.of_classes([2, 0])

    assert chosen.classes == ["c", "a"]
    assert len(chosen) == 3
    assert chosen.labels.tolist() == [1, 1, 0]
    assert torch.equal(chosen.take(torch.tensor([2, 0])), images.pixels[[4, 0]])
    assert torch.equal(chosen.of_classes([1]).take(torch.tensor([1])), images.pixels[[1]])
    assert len({images.digest, chosen.digest, images.of_classes([0, 2]).digest}) == 3


@pytest.mark.parametrize("classes", [[], [3], [-1], [0, 0]])
def test_classes_that_are_not_there_cannot_be_chosen(images: TrainingImages, classes: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        images.of_classes(classes)
