"""The blob store, in a folder and in a file system that is reached by name only."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from service.blobs import BlobDamaged, BlobMissing, BlobStore
from service.durable import write_atomically

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture(params=["folder", "elsewhere"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield f"file://{tmp_path / 'blobs'}"
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.fixture
def blobs(url: str) -> BlobStore:
    return BlobStore(url)


def stored(url: str) -> dict[str, bytes]:
    """Return every file of the store by its name below the root."""
    filesystem, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): filesystem.cat_file(path) for path in filesystem.find(root)}


def overwrite(url: str, data: bytes) -> None:
    """Write to the one file of the store."""
    filesystem, root = fsspec.core.url_to_fs(url)
    (path,) = filesystem.find(root)
    filesystem.pipe_file(path, data)


def test_bytes_come_back_under_their_digest_and_are_stored_once(blobs: BlobStore, url: str) -> None:
    digests = [blobs.put(data) for data in (b"", b"network", b"network")]

    assert digests[0] == EMPTY
    assert digests[1] == digests[2]
    assert [blobs.get(digest) for digest in digests[:2]] == [b"", b"network"]
    assert sorted(stored(url)) == sorted(f"artifacts/{digest[:2]}/{digest}" for digest in digests[:2])


def test_what_was_damaged_is_never_given_out_and_is_put_right_when_it_is_stored_again(
    blobs: BlobStore, url: str
) -> None:
    digest = blobs.put(b"network")
    overwrite(url, b"netwerk")

    with pytest.raises(BlobDamaged, match=digest):
        blobs.get(digest)
    assert blobs.put(b"network") == digest
    assert blobs.get(digest) == b"network"


def test_a_blob_that_was_deleted_is_missing_and_can_be_deleted_again(blobs: BlobStore) -> None:
    digest = blobs.put(b"network")

    blobs.delete(digest)
    blobs.delete(digest)

    with pytest.raises(BlobMissing, match=digest):
        blobs.get(digest)


def test_a_named_file_is_there_when_it_is_whole(blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.publish("indexes/g1.faiss", lambda path: write_atomically(path, lambda part: part.write_bytes(b"index")))
    fetched = blobs.fetch_file("indexes/g1.faiss", tmp_path / "cache")

    assert fetched.read_bytes() == b"index"
    assert stored(url) == {"indexes/g1.faiss": b"index"}
    assert blobs.list_files("indexes") == ["g1.faiss"]


def test_a_file_whose_writing_failed_has_no_name(blobs: BlobStore) -> None:
    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        blobs.publish("indexes/g1.faiss", lambda path: write_atomically(path, fail))

    assert "g1.faiss" not in blobs.list_files("indexes")


def test_a_file_that_was_deleted_is_gone_and_can_be_deleted_again(blobs: BlobStore) -> None:
    blobs.publish("indexes/g1.faiss", lambda path: write_atomically(path, lambda part: part.write_bytes(b"index")))

    blobs.delete_file("indexes/g1.faiss")
    blobs.delete_file("indexes/g1.faiss")

    assert blobs.list_files("indexes") == []


def test_a_folder_that_was_never_made_has_no_files(blobs: BlobStore) -> None:
    assert blobs.list_files("trainings") == []


def test_a_fetched_copy_is_used_again_and_a_stored_file_is_no_copy(blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.publish("indexes/g1.faiss", lambda path: write_atomically(path, lambda part: part.write_bytes(b"index")))

    first = blobs.fetch_file("indexes/g1.faiss", tmp_path / "cache")
    blobs.delete_file("indexes/g1.faiss")
    is_copy = first.exists()

    assert is_copy == url.startswith("memory")
    if is_copy:
        assert blobs.fetch_file("indexes/g1.faiss", tmp_path / "cache").read_bytes() == b"index"
