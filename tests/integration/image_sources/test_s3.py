"""Reading from an S3 server over its own protocol: moto's, in a process of its own."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from service.image_sources.errors import ImageAway, ImageNotRead, LocationNotAllowed
from service.image_sources.source import ImageSource
from service.settings import Settings
from tests.served import free_port, wait_for

missing = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of an S3 server that is empty."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(url), seconds=60)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of an operator who has credentials for the server, and a bucket that holds a few objects."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    for bucket in ("images", "images-private"):
        if not filesystem.exists(bucket):
            filesystem.mkdir(bucket)
    for key, data in {
        "images/cats/1.jpg": b"cat",
        "images/cats/ä b%20c.jpg": b"odd",
        "images/cats/empty.jpg": b"",
        "images/cats/large.jpg": b"x" * 101,
        "images/dogs/1.jpg": b"dog",
        "images-private/cats/1.jpg": b"secret",
    }.items():
        filesystem.pipe_file(key, data)
    return endpoint


def _source(seconds: float = 30.0) -> ImageSource:
    return ImageSource(Settings(images="s3://images/cats", max_image_bytes=100, image_read_seconds=seconds))


def test_objects_below_the_prefix_are_read_by_their_literal_keys(store: str) -> None:
    source = _source()

    assert source.read("s3://images/cats/1.jpg") == b"cat"
    assert source.read("s3://images/cats/ä b%20c.jpg") == b"odd"


def test_other_keys_and_buckets_are_not_reached(store: str) -> None:
    source = _source()

    for uri in ("s3://images/dogs/1.jpg", "s3://images/cats/../dogs/1.jpg", "s3://images-private/cats/1.jpg"):
        with pytest.raises(LocationNotAllowed):
            source.read(uri)


def test_what_is_missing_empty_or_too_large_is_said(store: str) -> None:
    source = _source()

    for uri, sentence in {
        "s3://images/cats/2.jpg": "no such object",
        "s3://images/cats/empty.jpg": "empty",
        "s3://images/cats/large.jpg": "larger than 100 bytes",
    }.items():
        with pytest.raises(ImageNotRead, match=sentence):
            source.read(uri)


def test_a_store_that_is_away_is_called_so_within_the_time(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(ImageAway):
        _source(seconds=1.0).read("s3://images/cats/1.jpg")
