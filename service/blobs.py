"""The blob store: bytes kept under their SHA-256, in a folder or anything fsspec reaches (S3 and others)."""

import hashlib
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from service.durable import write_atomically
from service.errors import GalleryError


class BlobDamaged(GalleryError):
    """Stored bytes no longer have the digest that they were stored under."""

    status_code = 500


class BlobMissing(GalleryError):
    """There are no bytes of that digest."""

    status_code = 500


class BlobStore:
    """`put` gives a digest; `get` gives back exactly the bytes with that digest or raises."""

    def __init__(self, url: str) -> None:
        self._filesystem, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        self._is_local = urlsplit(url).scheme in ("", "file")
        self._filesystem.makedirs(self._root, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store `data` (once, or again when what is stored was damaged) and return its SHA-256 in hex."""
        digest = hashlib.sha256(data).hexdigest()
        try:
            self.get(digest)
        except (BlobMissing, BlobDamaged):
            self.publish(_artifact(digest), lambda path: write_atomically(path, lambda part: part.write_bytes(data)))
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes stored under `digest`, checked; raise `BlobMissing` or `BlobDamaged`."""
        try:
            data: bytes = self._filesystem.cat_file(f"{self._root}/{_artifact(digest)}")
        except FileNotFoundError as error:
            raise BlobMissing(f"Artifact {digest} is not in the blob store.") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise BlobDamaged(f"Artifact {digest} in the blob store is damaged: its digest differs.")
        return data

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not there is not an error."""
        self.delete_file(_artifact(digest))

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Store the file that `write(path)` makes under `name`, all of it or nothing.

        `write` itself must make the file durable and whole (`service.index.files.save_index` does). What is not a
        local file is sent under another name first, so that no name ever stands for half of it.
        """
        if self._is_local:
            path = Path(self._root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "file"
            write(source)
            temporary = f"{self._root}/{name}.{uuid.uuid4().hex}.part"
            self._filesystem.makedirs(temporary.rsplit("/", 1)[0], exist_ok=True)
            self._filesystem.put_file(str(source), temporary)
            self._filesystem.mv(temporary, f"{self._root}/{name}")

    def fetch_file(self, name: str, cache: Path) -> Path:
        """Return a local path that holds blob `name`: the stored file itself, or a copy below `cache`."""
        if self._is_local:
            return Path(self._root) / name
        target = cache / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, lambda part: self._filesystem.get_file(f"{self._root}/{name}", str(part)))
        return target

    def list_files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder; none when there is no such folder."""
        try:
            paths = self._filesystem.ls(f"{self._root}/{folder}", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return [path.rsplit("/", 1)[1] for path in paths]

    def delete_file(self, name: str) -> None:
        """Remove a named file; one that is not there is not an error."""
        if self._filesystem.exists(f"{self._root}/{name}"):
            self._filesystem.rm_file(f"{self._root}/{name}")


def _artifact(digest: str) -> str:
    return f"artifacts/{digest[:2]}/{digest}"
