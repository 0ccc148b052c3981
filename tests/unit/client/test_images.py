"""What may be searched with, told apart."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gallery_upgrade.core.calls import File
from gallery_upgrade.images import ImageQuery, ItemQuery, VectorQuery, query_of


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


@pytest.mark.parametrize(
    "query", [3, np.zeros((2, 2, 2)), np.zeros((2, 2), dtype=np.int64)], ids=["number", "3-d", "int"]
)
def test_anything_else_is_no_query(query: object) -> None:
    with pytest.raises(TypeError):
        query_of(query)
