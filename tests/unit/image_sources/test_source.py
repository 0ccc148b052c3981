"""Reading local files and fsspec's, within the prefixes and the limits."""

import os
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.image_sources.errors import ImageAway, ImageNotRead, LocationNotAllowed
from service.image_sources.source import ImageSource
from service.settings import Settings


class SlowFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that never answers in time and cannot be told to stop."""

    protocol = ("slow",)

    def cat_file(self, *arguments: object, **options: object) -> bytes:
        time.sleep(1.0)
        return b"late"


fsspec.register_implementation("slow", SlowFileSystem)


def _source(*prefixes: object, max_image_bytes: int = 100, seconds: float = 5.0) -> ImageSource:
    return ImageSource(
        Settings(images=" ".join(map(str, prefixes)), max_image_bytes=max_image_bytes, image_read_seconds=seconds)
    )


def test_a_file_below_a_prefix_is_read_however_its_name_is_encoded(tmp_path: Path) -> None:
    file = tmp_path / "Kätzchen 100%.jpg"
    file.write_bytes(b"cat")
    source = _source(tmp_path.as_uri())

    assert source.read(file.as_uri()) == source.read(f"file://{file}") == b"cat"


def test_without_prefixes_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"cat")

    with pytest.raises(LocationNotAllowed, match="lists no prefix in GALLERY_IMAGES"):
        _source().read((tmp_path / "1.jpg").as_uri())


def test_a_symlink_may_lead_about_inside_a_prefix_and_not_out_of_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "images", tmp_path / "private"
    inside.mkdir()
    outside.mkdir()
    (outside / "1.jpg").write_bytes(b"secret")
    (inside / "2.jpg").write_bytes(b"cat")
    (inside / "out.jpg").symlink_to(outside / "1.jpg")
    (inside / "folder").symlink_to(outside)
    (inside / "within.jpg").symlink_to("2.jpg")
    (inside / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "listed").symlink_to(inside)
    source = _source((tmp_path / "listed").as_uri())

    assert source.read(f"file://{tmp_path}/listed/within.jpg") == b"cat"
    for name in ("out.jpg", "folder/1.jpg"):
        with pytest.raises(LocationNotAllowed, match="leads out"):
            source.read(f"file://{tmp_path}/listed/{name}")
    with pytest.raises(ImageNotRead):
        source.read(f"file://{tmp_path}/listed/circle.jpg")


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = _source(tmp_path.as_uri(), "file:///dev/zero")

    for uri in ((tmp_path / "pipe").as_uri(), tmp_path.as_uri(), "file:///dev/zero"):
        with pytest.raises(ImageNotRead, match="It is not a file"):
            source.read(uri)


def test_what_is_missing_forbidden_empty_or_too_large_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)
    (tmp_path / "full.jpg").write_bytes(b"x" * 100)
    source = _source(tmp_path.as_uri())

    assert len(source.read((tmp_path / "full.jpg").as_uri())) == 100
    for name, sentence in {
        "missing.jpg": "There is no such file.",
        "full.jpg/1.jpg": "The file cannot be read",
        "empty.jpg": "The image is empty.",
        "large.jpg": "larger than 100 bytes",
        "x" * 300: "The file cannot be read",
    }.items():
        with pytest.raises(ImageNotRead, match=sentence):
            source.read(f"file://{tmp_path}/{name}")


def test_a_store_of_fsspec_is_read_below_its_prefix_only() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/images-1/cats/1.jpg", b"cat")
    memory.pipe_file("/images-1/cats/large.jpg", b"x" * 101)
    memory.pipe_file("/images-1/dogs/1.jpg", b"dog")
    source = _source("memory://images-1/cats")

    assert source.read("memory://images-1/cats/1.jpg") == b"cat"
    with pytest.raises(LocationNotAllowed):
        source.read("memory://images-1/dogs/1.jpg")
    with pytest.raises(ImageNotRead, match="no such object"):
        source.read("memory://images-1/cats/2.jpg")
    with pytest.raises(ImageNotRead, match="larger than 100 bytes"):
        source.read("memory://images-1/cats/large.jpg")


def test_a_store_that_does_not_answer_in_time_is_not_waited_for() -> None:
    with pytest.raises(ImageAway, match=r"within 0\.05 s"):
        _source("slow://place/", seconds=0.05).read("slow://place/1.jpg")


@pytest.mark.parametrize("listed", ["zip://a/", "simplecache://a/", "local:///images", "unheard-of://a/", "data://a/"])
def test_a_process_does_not_start_with_a_prefix_that_bounds_nothing(listed: str) -> None:
    with pytest.raises(ValueError, match="GALLERY_IMAGES: "):
        _source(listed)
