"""Images reduced for networks: what is kept of them, and what is refused by name."""

import numpy as np
import pytest

from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess
from service.networks.images import ImageDecoder, InvalidImage, ReducedImage
from service.settings import Settings
from tests.image_files import encoded, noise, png_of_zeros

SMALL, LARGE = (Preprocessing(size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)) for size in (8, 224))


def test_an_image_is_reduced_for_each_preprocessing_and_to_a_thumbnail() -> None:
    data = encoded(noise(400, 300))

    reduced = ImageDecoder(Settings()).reduce(data, [SMALL, LARGE, SMALL], thumbnail=True)

    assert set(reduced.inputs) == {SMALL, LARGE}
    assert np.array_equal(reduced.inputs[SMALL], preprocess(decode_image(data), SMALL))
    assert reduced.thumbnail is not None
    assert decode_image(reduced.thumbnail).size == (160, 120)


def test_an_image_that_exceeds_the_whole_budget_is_refused_and_says_what_to_set() -> None:
    decoder = ImageDecoder(Settings(decoded_bytes=2**20))

    with pytest.raises(InvalidImage, match=r"takes 2000000 bytes .* at most 1048576 .*GALLERY_DECODED_BYTES"):
        decoder.reduce(png_of_zeros(1_000, 1_000), [SMALL])


def test_every_image_within_the_limit_of_pixels_fits_the_budget() -> None:
    settings = Settings()

    assert settings.decoded_bytes >= 24 * settings.max_image_pixels


def test_a_batch_is_full_by_number_and_by_size() -> None:
    decoder = ImageDecoder(Settings(encode_batch_items=4))
    small, large = (ReducedImage({each: np.zeros(each.shape, np.float32)}) for each in (SMALL, LARGE))

    assert [decoder.is_full(count, small) for count in (1, 3, 4)] == [False, False, True]
    assert not ImageDecoder(Settings()).is_full(13, large)
    assert ImageDecoder(Settings()).is_full(14, large)
