"""Files that a crash leaves as they were, or new and whole, and their digest. Standard library only; the service's door
to it is `service.durable`.

A crash may leave the temporary file beside its place: its name begins with the file's own and ends in `.part`, and is
never used twice, so that several processes may write the same file; whoever removes files of a name removes these too.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, Literal

_READ_BYTES = 2**20

Step = Literal["written", "synced", "renamed"]


def write_atomically(
    path: Path, write: Callable[[Path], object], after: Callable[[Step, Path], object] = lambda _step, _file: None
) -> None:
    """Give `path` the file that `write(part)` makes, in one step: 1. write it under a temporary name in the same
    folder; 2. fsync it; 3. rename it; 4. fsync the folder.

    `after` is called with each step but the last, and the file under the name that it has then. What fails before 3
    leaves no temporary file, and what was at `path` as it was.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        write(part)  # 1.
        after("written", part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())  # 2.
        after("synced", part)
        part.rename(path)  # 3.
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    after("renamed", path)
    sync_folder(path.parent)  # 4.


def file_sha256(file: Path | BinaryIO) -> str:
    """Return the SHA-256 of a file, in hex; of an open one, from its beginning."""
    digest = hashlib.sha256()
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
