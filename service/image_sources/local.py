"""Reading local files, never out of the prefix's folder: symlinks may lead about inside it."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from service.image_sources.errors import ImageNotRead, LocationNotAllowed
from service.image_sources.locations import Location


def read_local(location: Location, prefix: Location, most_bytes: int) -> bytes:
    """Return up to `most_bytes` of a regular file below the prefix. Raises `ImageNotRead` (422)."""
    try:
        root = Path(prefix.path).resolve(strict=True)
        path = Path(location.path).resolve(strict=True)
        if not path.is_relative_to(root):
            raise LocationNotAllowed("The image's path leads out of what GALLERY_IMAGES lists, by a symlink.")
        with _open_beneath(root, path.relative_to(root).parts) as file:
            return file.read(most_bytes)
    except FileNotFoundError as error:
        raise ImageNotRead("There is no such file.") from error
    except PermissionError as error:
        raise ImageNotRead("The service may not read the file.") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a circle of symlinks
        raise ImageNotRead(
            f"The file cannot be read: {getattr(error, 'strerror', None) or 'its path leads in a circle'}."
        ) from error


def _open_beneath(root: Path, parts: tuple[str, ...]) -> BinaryIO:
    """Open a regular file step by step, following no link: one that was put in place since the path was resolved is an
    error. A pipe or a device is not waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageNotRead("It is not a file: a folder, a pipe or a device.")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")
