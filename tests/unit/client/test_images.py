"""What may be searched with, told apart."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from gallery_upgrade.core.calls import File
from gallery_upgrade.images import ImageQuery, ItemQuery, VectorQuery, image_file, query_of
from models.image_colours import as_shown
from models.images import decode_image


def test_a_string_is_a_file_that_is_there_and_else_an_item(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")

    assert query_of(str(path)) == ImageQuery(File("a.png", path))
    assert query_of(path) == ImageQuery(File("a.png", path))
    assert query_of("b.png") == ItemQuery("b.png")
    assert query_of(b"pixels") == ImageQuery(File("query", b"pixels"))


def test_arrays_are_images_or_vectors_by_their_type() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    of_array, of_image = query_of(values), query_of(Image.fromarray(values))

    assert isinstance(of_array, ImageQuery)
    assert of_array == of_image
    assert isinstance(of_array.file.content, bytes)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(of_array.file.content))), values)
    assert query_of(np.array([1, 2], dtype=np.float32)) == VectorQuery([[1.0, 2.0]], single=True)
    assert query_of(np.array([[1, 2]], dtype=np.float16)) == VectorQuery([[1.0, 2.0]], single=False)


def pixels(file: File) -> NDArray[np.uint8]:
    """Return what the service sees in a file, (H, W, 3)."""
    assert isinstance(file.content, bytes)
    return np.asarray(decode_image(file.content))


def in_mode(mode: str) -> Image.Image:
    """Return a picture of 5 x 4 in a mode of PIL's."""
    rng = np.random.default_rng(0)
    if mode == "F":
        return Image.fromarray(rng.random((4, 5)).astype(np.float32))
    if mode.startswith("I"):
        return Image.frombytes(mode, (5, 4), rng.bytes(4 * 5 * (4 if mode == "I" else 2)))
    picture = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8))
    if mode == "LAB":
        srgb, lab = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
        picture = ImageCms.profileToProfile(picture.convert("RGB"), srgb, lab, outputMode="LAB") or picture
    return picture.convert({"La": "LA", "PA": "P"}.get(mode, mode)).convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "LA", "I", "F", "I;16", "I;16B", "CMYK", "LAB", "YCbCr", "HSV", "PA", "RGBa"],
)
def test_a_pil_image_of_any_mode_is_seen_as_it_is_shown(mode: str) -> None:
    picture = in_mode(mode)

    seen = pixels(image_file(picture))

    assert np.array_equal(seen, np.asarray(as_shown(picture, None).convert("RGB")))


@pytest.mark.parametrize("mode", ["La", "RGBX", "I;16L", "I;16N"])
def test_a_pil_image_of_a_mode_that_is_seldom_shown_can_be_sent(mode: str) -> None:
    assert pixels(image_file(in_mode(mode))).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "L"), ("TIFF", "F")]
)
def test_an_image_opened_by_pil_is_seen_as_its_file_is(kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # lying on its side
    stream = io.BytesIO()
    in_mode(mode).save(stream, kind, exif=exif, icc_profile=b"a profile")
    of_file = File("x", stream.getvalue())

    sent = image_file(Image.open(stream))

    assert pixels(sent).shape == (5, 4, 3)
    assert np.array_equal(pixels(sent), pixels(of_file))
    assert isinstance(sent.content, bytes)
    assert Image.open(io.BytesIO(sent.content)).info["icc_profile"] == b"a profile"


def test_exif_that_cannot_be_read_says_nothing() -> None:
    picture = in_mode("CMYK")
    picture.info["exif"] = b"Exif\0\0no exif at all"

    assert pixels(image_file(picture)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    "query", [3, np.zeros((2, 2, 2)), np.zeros((2, 2), dtype=np.int64)], ids=["number", "3-d", "int"]
)
def test_anything_else_is_no_query(query: object) -> None:
    with pytest.raises(TypeError):
        query_of(query)
