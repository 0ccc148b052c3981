"""Decoding: what is accepted comes out as RGB with the right values; everything else is a sentence for the sender."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.images import ImageRejected, decode_image, open_image, thumbnail_jpeg
from tests.image_files import TURNED_HEIC, display_p3, encoded, picture, png_of_zeros

ORIENTATION = 0x0112
RANDOM = np.random.default_rng(0)


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_value(image_format: str) -> None:
    decoded = decode_image(encoded(picture(), image_format))

    assert decoded.mode == "RGB"
    assert np.array_equal(pixels(decoded), pixels(picture()))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats_come_out_nearly_the_same(image_format: str) -> None:
    decoded = decode_image(encoded(picture(), image_format))

    assert decoded.mode == "RGB"
    assert np.abs(pixels(decoded) - pixels(picture())).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_in_all_eight_cases(image_format: str, orientation: int) -> None:
    upright = pixels(picture())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]).astype(np.uint8))

    decoded = decode_image(encoded(image, image_format, exif=exif.tobytes(), quality=95))

    assert decoded.size == (24, 16)
    assert np.abs(pixels(decoded) - upright).mean() < 12


def test_damaged_exif_does_not_cost_a_sound_image() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00this is not a TIFF header")

    assert decode_image(data).size == (24, 16)


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)

    red, green, blue = pixels(decode_image(data)).mean(axis=(0, 1))

    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(mode: str) -> None:
    clear_black, solid_black = ((0, 0, 0, 0), (0, 0, 0, 255)) if mode == "RGBA" else ((0, 0), (0, 255))
    image = Image.new(mode, (2, 1), clear_black)
    image.putpixel((1, 0), solid_black)

    decoded = pixels(decode_image(encoded(image)))

    assert decoded.tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_half_transparent_black_becomes_middle_grey() -> None:
    decoded = pixels(decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))))

    assert decoded.tolist() == [[[127, 127, 127]]]


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)

    decoded = pixels(decode_image(encoded(image, transparency=0)))

    assert decoded.tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(image_format: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65280, 65535]], np.uint16)

    decoded = pixels(decode_image(encoded(Image.fromarray(values), image_format)))

    assert decoded[0, :, 0].tolist() == [0, 1, 1, 128, 254, 255]
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_big_endian_sixteen_bits_are_scaled_too() -> None:
    decoded = pixels(decode_image(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 32768)))

    assert decoded[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([7000.0, 7000.0, 7000.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_their_range(values: list[float], expected: list[int]) -> None:
    decoded = pixels(decode_image(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")))

    assert decoded[0, :, 0].tolist() == expected


def test_thirty_two_bit_integers_beyond_sixteen_bits_are_scaled_by_their_range() -> None:
    image = Image.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))

    decoded = pixels(decode_image(encoded(image, "TIFF")))

    assert decoded[0, :, 0].tolist() == [0, 128, 255]


def test_floats_that_are_not_finite_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF")

    with pytest.raises(ImageRejected, match="not finite"):
        decode_image(data)


def test_one_bit_images_become_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))

    assert pixels(decode_image(encoded(image)))[0, :, 1].tolist() == [255, 0]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_used(image_format: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255)))

    decoded = decode_image(encoded(red, image_format, save_all=True, append_images=[blue]))

    assert np.abs(pixels(decoded) - pixels(red)).max() < 6


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ImageRejected, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"%PDF-1.7 something",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\x00" * 100,
    ],
)
def test_what_is_not_an_image_is_refused_naming_the_formats(data: bytes) -> None:
    with pytest.raises(ImageRejected, match="JPEG, PNG"):
        decode_image(data)


def test_formats_outside_the_list_are_refused() -> None:
    with pytest.raises(ImageRejected, match="known format"):
        decode_image(encoded(picture(), "ICO"))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_truncated_files_are_refused(image_format: str) -> None:
    noise = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, image_format)

    with pytest.raises(ImageRejected, match=r"damaged or incomplete|known format"):
        decode_image(data[: len(data) // 2])


def test_more_pixels_than_allowed_are_refused_from_the_header() -> None:
    data = png_of_zeros(9_000, 8_000)

    with pytest.raises(ImageRejected, match="9000 x 8000 pixels; at most 64000000"):
        decode_image(data)


def test_the_limit_is_inclusive() -> None:
    data = encoded(picture(10, 10))

    assert decode_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageRejected, match="at most 99"):
        decode_image(data, max_pixels=99)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_that_pillow_only_warns_about_is_refused() -> None:
    with pytest.raises(ImageRejected, match="12000 x 12000"):
        decode_image(png_of_zeros(12_000, 12_000))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_where_warnings_are_errors() -> None:
    with pytest.raises(ImageRejected, match="too many pixels"):
        decode_image(png_of_zeros(12_000, 12_000))


def test_a_bomb_of_kilobytes_is_refused_before_it_is_decoded() -> None:
    data = png_of_zeros(20_000, 20_000)

    assert len(data) < 100_000
    with pytest.raises(ImageRejected, match=r"too many pixels|20000 x 20000"):
        decode_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_a_limit_above_pillows_own_holds_for_every_format(image_format: str) -> None:
    data = encoded(Image.new("1", (16_000, 12_000)), image_format)

    with pytest.raises(ImageRejected, match="16000 x 12000 pixels; at most"):
        open_image(data, max_pixels=191_999_999)
    assert open_image(data, max_pixels=192_000_000).decoded_bytes >= 192_000_000


def test_an_edge_is_bounded_as_well_as_the_area() -> None:
    data = png_of_zeros(65_536, 1)

    with pytest.raises(ImageRejected, match="65536 x 1 pixels; an edge has at most 65535"):
        decode_image(data)
    assert decode_image(png_of_zeros(1, 65_535)).size == (1, 65_535)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about TIFF tags
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"]),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=12),
    st.integers(0, 2_000),
)
def test_damaged_bytes_give_an_image_or_a_refusal(image_format: str, changes: list[tuple[int, int]], kept: int) -> None:
    data = bytearray(encoded(picture(), image_format)[: max(1, kept)])
    for position, value in changes:
        data[position % len(data)] = value

    try:
        outcome = decode_image(bytes(data), max_pixels=1_000_000).mode
    except ImageRejected as error:
        outcome = str(error)

    assert outcome == "RGB" or outcome.startswith("The ")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about TIFF tags
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_two_thousand_mutated_files_give_an_image_or_a_refusal() -> None:
    random = np.random.default_rng(0)
    image = picture(32, 24)
    formats = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"]
    files = [encoded(image, name) for name in formats]
    files += [encoded(image, "JPEG", progressive=True), encoded(image.convert("CMYK"), "JPEG"), TURNED_HEIC]
    files += [encoded(image, name, icc_profile=display_p3()) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    outcomes = set()

    for number in range(2_000):
        data = bytearray(files[number % len(files)])
        for position in random.integers(0, len(data), random.integers(1, 12)):
            data[position] = random.integers(0, 256)
        if number % 3 == 0:
            del data[int(random.integers(1, len(data))) :]
        try:
            outcomes.add(decode_image(bytes(data), max_pixels=1_000_000).mode)
        except ImageRejected as error:
            outcomes.add(str(error).split()[0])

    assert outcomes == {"RGB", "The"}


def test_decoding_from_many_threads_gives_what_one_gives() -> None:
    formats = ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF"] * 8
    files = [encoded(picture(20 + number, 30), name) for number, name in enumerate(formats)]
    alone = [pixels(decode_image(data)) for data in files]

    with ThreadPoolExecutor(8) as threads:
        together = [pixels(image) for image in threads.map(decode_image, files)]

    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_thumbnail_is_a_jpeg_within_the_edge_and_leaves_the_image_alone() -> None:
    image = picture(400, 200)

    thumbnail = Image.open(io.BytesIO(thumbnail_jpeg(image, edge=100)))

    assert thumbnail.format == "JPEG"
    assert thumbnail.size == (100, 50)
    assert image.size == (400, 200)


def test_a_small_image_is_not_enlarged_to_a_thumbnail() -> None:
    assert Image.open(io.BytesIO(thumbnail_jpeg(picture(24, 16)))).size == (24, 16)
