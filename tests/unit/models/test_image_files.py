"""Around the pixels: damage there costs only itself, and pixels that are missing are still refused."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.image_files import sound_file
from models.images import ImageRejected, decode_image
from tests.image_files import TURNED_HEIC, chunk, encoded, noise, picture, with_chunks

CASES = Path(__file__).parents[4] / "shared" / "cases" / "images"  # beside the repository
LARGE = zlib.compress(bytes(1_500_000))
TURN = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # EXIF that says orientation 6
TURN_AS_TEXT = b"\nexif\n32\n" + (b"Exif\0\0" + TURN).hex().encode()  # as ImageMagick writes it


def wrong_checksum(kind: bytes, body: bytes) -> bytes:
    return chunk(kind, body)[:-4] + b"nope"


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + LARGE),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**25))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**25))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
        chunk(b"iTXt", b"Comment\0\0\0\0\0" + bytes(3_000_000)),
        chunk(b"tEXt", b"Comment\0" + bytes(3_000_000)),
        chunk(b"tEXt", b"Raw profile type exif\0\n\n\nnot hexadecimal"),
        chunk(b"iCCP", b"profile\0\0" + LARGE),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**25))),
        chunk(b"iCCP", b"profile\0\0not deflated"),
        chunk(b"iCCP", b""),
        chunk(b"eXIf", b"not EXIF"),
        chunk(b"pHYs", b"short"),
        chunk(b"gAMA", b""),
        chunk(b"acTL", b""),
        wrong_checksum(b"tEXt", b"Comment\0text"),
        wrong_checksum(b"iCCP", b"profile\0\0" + LARGE),
        wrong_checksum(b"pHYs", bytes(9)),
        wrong_checksum(b"tRNS", bytes(6)),
        chunk(b"zTXt", b"Comment\0\0" + LARGE) * 100,
    ],
    ids=lambda extra: f"{extra[4:8].decode()}-{len(extra)}-{zlib.crc32(extra) % 1000}",
)
def test_what_is_wrong_beside_the_pixels_of_a_png_costs_only_itself(extra: bytes) -> None:
    decoded = decode_image(with_chunks(encoded(picture()), extra))

    assert np.array_equal(np.asarray(decoded), np.asarray(picture()))


def test_damaged_pixels_of_a_png_are_refused() -> None:
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 255

    with pytest.raises(ImageRejected, match="damaged"):
        decode_image(bytes(data))


def test_a_png_header_with_a_wrong_checksum_is_refused() -> None:
    data = bytearray(encoded(noise()))
    data[30] ^= 255

    with pytest.raises(ImageRejected):
        decode_image(bytes(data))


@pytest.mark.parametrize("missing", [1, 4, 12, 13, 16])
def test_a_png_without_its_end_is_whole(missing: int) -> None:
    assert np.array_equal(np.asarray(decode_image(encoded(noise())[:-missing])), np.asarray(noise()))


@pytest.mark.parametrize("extra", [chunk(b"eXIf", TURN), chunk(b"tEXt", b"Raw profile type exif\0" + TURN_AS_TEXT)])
def test_how_a_png_is_turned_is_read_whoever_wrote_it(extra: bytes) -> None:
    assert decode_image(with_chunks(encoded(picture()), extra)).size == (16, 24)


def test_xmp_says_how_a_png_is_turned() -> None:
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')

    assert decode_image(with_chunks(encoded(picture()), chunk(b"iTXt", xmp))).size == (16, 24)


KINDS_OF_JPEG: list[dict[str, Any]] = [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}, {"optimize": True}]


@pytest.mark.parametrize("options", KINDS_OF_JPEG)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_whole(mode: str, options: dict[str, Any]) -> None:
    data = encoded(noise().convert(mode), "JPEG", **options)

    for missing in (1, 2):
        assert np.array_equal(np.asarray(decode_image(data[:-missing])), np.asarray(decode_image(data)))


@pytest.mark.parametrize("options", KINDS_OF_JPEG)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_ends(mode: str, options: dict[str, Any]) -> None:
    data = encoded(noise(32, 24).convert(mode), "JPEG", **options)

    accepted = 0
    for kept in range(20, len(data) - 4, 7):
        try:
            accepted += np.asarray(decode_image(data[:kept])).size > 0
        except ImageRejected:
            continue

    assert accepted == 0


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]

    for start in scans[1:]:
        with pytest.raises(ImageRejected):
            decode_image(data[:start])


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_metadata_that_is_cut_or_lies_costs_only_itself(lossless: bool) -> None:
    data = encoded(noise(), "WEBP", lossless=lossless, exif=TURN, xmp=b"<x/>" * 1000, icc_profile=b"x" * 1_500_000)

    whole, cut = decode_image(data), decode_image(data[:-100])

    assert whole.size == (48, 64)
    assert np.array_equal(np.asarray(whole), np.asarray(cut))


def test_a_webp_that_lacks_pixels_is_refused() -> None:
    data = encoded(noise(), "WEBP")

    for missing in (1, 10, 100):
        with pytest.raises(ImageRejected):
            decode_image(data[:-missing])


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "TIFF", "AVIF", "PNG"])
def test_a_large_profile_that_is_none_is_passed_over(image_format: str) -> None:
    decoded = decode_image(encoded(picture(), image_format, icc_profile=b"x" * 1_500_000))

    assert np.array_equal(np.asarray(decoded), np.asarray(decode_image(encoded(picture(), image_format))))


def test_exif_that_is_none_does_not_cost_an_avif_or_heic_or_their_turn() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    avif = encoded(picture(), "AVIF", exif=exif.tobytes())

    for data, size in ((avif, (16, 24)), (TURNED_HEIC, (32, 24))):
        damaged = data.replace(b"MM\0*", b"none").replace(b"II*\0", b"none")
        assert damaged != data
        assert decode_image(damaged).size == size


@pytest.mark.parametrize("missing", [1, 2])
def test_a_gif_without_its_end_is_whole(missing: int) -> None:
    data = encoded(noise().convert("P"), "GIF", comment=b"c" * 100_000)

    assert np.array_equal(np.asarray(decode_image(data[:-missing])), np.asarray(decode_image(data)))


def test_a_heic_is_turned_once() -> None:
    decoded = decode_image(TURNED_HEIC)

    assert decoded.size == (32, 24)
    assert np.abs(np.asarray(decoded).astype(float) - np.asarray(picture(32, 24))).mean() < 6


def test_a_heic_that_lacks_pixels_is_refused() -> None:
    with pytest.raises(ImageRejected):
        decode_image(TURNED_HEIC[:-80])


def test_a_file_that_needs_nothing_is_not_copied() -> None:
    data = encoded(picture(), "JPEG")

    assert sound_file(data).data is data


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")
def test_every_file_of_the_shared_cases_is_a_picture_of_its_colours() -> None:
    for path in sorted(CASES.iterdir()):
        values = np.asarray(decode_image(path.read_bytes()))

        assert values.min() < 60, path
        assert 180 < values.max() < 255, path
