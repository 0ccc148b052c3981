"""What pixels show: alpha that is unused, colour keys of 16 bits, and colours as their profile says."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.images import decode_image, open_image, thumbnail_jpeg
from tests.image_files import bmp_with_unused_alpha, chunk, display_p3, encoded, noise, picture, png


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "AVIF", "BMP"])
def test_colours_whose_alpha_is_zero_everywhere_are_shown(image_format: str) -> None:
    image = picture()
    clear = image.convert("RGBA")
    clear.putalpha(0)
    options = {"exact": True, "lossless": True} if image_format == "WEBP" else {}
    data = bmp_with_unused_alpha(image) if image_format == "BMP" else encoded(clear, image_format, **options)

    decoded = np.asarray(decode_image(data)).astype(int)

    assert np.abs(decoded - np.asarray(image)).mean() < 12


def test_a_picture_that_is_transparent_and_has_no_colours_is_white() -> None:
    decoded = decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))))

    assert decoded.getextrema() == ((255, 255),) * 3


def test_a_palette_that_is_transparent_everywhere_is_white() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([200, 10, 10])

    assert decode_image(encoded(image, transparency=0)).getextrema() == ((255, 255),) * 3


def test_the_transparent_grey_of_sixteen_bits_is_that_very_grey() -> None:
    rows = b"\0" + struct.pack(">3H", 1000, 1001, 256)

    decoded = decode_image(png(3, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 1000))))

    assert np.asarray(decoded)[0, :, 0].tolist() == [255, 4, 1]


def test_the_transparent_colour_of_sixteen_bits_is_that_very_colour() -> None:
    rows = b"\0" + struct.pack(">9H", 1000, 2000, 3000, 1001, 2000, 3000, 1000, 2000, 3001)

    decoded = decode_image(png(3, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))))

    assert np.asarray(decoded)[0].tolist() == [[255, 255, 255], [3, 7, 11], [3, 7, 11]]


def test_sixteen_bits_of_which_zero_is_white_are_not_shown_as_a_negative() -> None:
    image = Image.fromarray(np.array([[0, 65535, 32768]], np.uint16))

    decoded = decode_image(encoded(image, "TIFF", tiffinfo={262: 0}))

    assert np.asarray(decoded)[0, :, 0].tolist() == [255, 0, 127]


def test_a_large_grey_of_sixteen_bits_is_scaled_by_one_range() -> None:
    values = np.zeros((3_000, 1_000), np.int32)
    values[-1, -1] = 200_000

    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))

    assert (decoded.min(), decoded.max(), int(decoded[-1, -1, 0])) == (0, 255, 255)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_colours_of_another_profile_are_taken_to_srgb(image_format: str) -> None:
    orange = Image.new("RGB", (8, 8), (200, 120, 60))

    plain = decode_image(encoded(orange, image_format)).resize((1, 1)).getpixel((0, 0))
    wide = decode_image(encoded(orange, image_format, icc_profile=display_p3())).resize((1, 1)).getpixel((0, 0))

    assert isinstance(plain, tuple)
    assert isinstance(wide, tuple)
    assert wide[0] > plain[0] + 8  # what Display P3 calls 200 red is redder than sRGB's
    assert wide[2] < plain[2] - 5


def test_thumbnails_are_of_the_converted_colours() -> None:
    image = open_image(encoded(Image.new("RGB", (8, 8), (200, 120, 60)), icc_profile=display_p3())).decode()

    thumbnail = decode_image(thumbnail_jpeg(image))

    assert np.abs(np.asarray(thumbnail).astype(int) - np.asarray(image)).max() < 6


def test_alpha_is_kept_when_colours_are_converted() -> None:
    image = Image.new("RGBA", (2, 1), (200, 120, 60, 255))
    image.putpixel((1, 0), (200, 120, 60, 0))

    decoded = np.asarray(decode_image(encoded(image, icc_profile=display_p3())))

    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[0, 0, 0] > 208


def test_srgb_s_own_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    decoded = decode_image(encoded(noise(), icc_profile=profile))

    assert np.array_equal(np.asarray(decoded), np.asarray(noise()))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA"])
def test_a_profile_of_other_colours_than_the_picture_s_costs_nothing(mode: str) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = picture().convert(mode)

    with_profile, without = (decode_image(encoded(image, "TIFF", icc_profile=each)) for each in (lab, b""))

    assert np.array_equal(np.asarray(with_profile), np.asarray(without))


def test_damaged_profiles_are_passed_over() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        profile = bytearray(display_p3())
        for place in random.integers(0, len(profile), 6):
            profile[place] = random.integers(0, 256)

        assert decode_image(encoded(picture(), icc_profile=bytes(profile))).size == (24, 16)


def test_lab_becomes_rgb() -> None:
    middle = decode_image(encoded(Image.new("LAB", (2, 2), (128, 128, 128)), "TIFF")).getpixel((0, 0))

    assert isinstance(middle, tuple)
    assert max(middle) - min(middle) <= 3
    assert 110 < middle[0] < 130


def test_a_grey_picture_stays_grey_until_it_is_asked_for_as_rgb() -> None:
    for image_format in ("PNG", "JPEG", "TIFF"):
        data = encoded(picture().convert("L"), image_format)

        assert open_image(data).decode().mode == "L"
        assert decode_image(data).mode == "RGB"
