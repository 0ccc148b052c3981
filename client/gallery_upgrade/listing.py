"""What of a folder can be sent: its images, and a reason for each that cannot be.

What cannot be looked at is not taken for gone.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gallery_upgrade.core.names import is_text, printable

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
MISSING = "It was listed and then not there: it was removed meanwhile, or is a link to nothing."


@dataclass(frozen=True)
class Found:
    """A file of the folder as it was listed."""

    id: str
    path: Path
    size: int
    changed_ns: int


@dataclass
class Listing:
    """The image files below a folder: `found` by their ids, in order of these; `reasons` why others cannot be sent, of
    which `missing` vanished while they were listed; and `unseen`, ids of files and folders that may have content."""

    found: dict[str, Found] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    unseen: set[str] = field(default_factory=set)

    def is_gone(self, item_id: str) -> bool:
        """Return whether the folder surely has no file of this id."""
        above = (str(parent) for parent in PurePosixPath(item_id).parents)
        return item_id not in self.found and item_id not in self.unseen and self.unseen.isdisjoint(above)


def listed(folder: Path) -> Listing:
    """List the image files below a folder, by their suffixes. Hidden files and folders are passed over.

    Raises NotADirectoryError where there is no such folder, also if it vanished while it was listed, and OSError where
    it cannot be read.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{printable(str(folder))} is not a folder.")
    listing = Listing()
    for path in sorted(_images(folder, listing)):
        _add(listing, path, path.relative_to(folder).as_posix())
    check_still(folder)
    listing.found = dict(sorted(listing.found.items()))
    return listing


def check_still(folder: Path) -> None:
    """Raise NotADirectoryError if a folder that was there is there no more."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{printable(str(folder))} is no longer there. What was sent is known: the same upload goes on once it is."
        )


def _images(folder: Path, listing: Listing) -> Iterator[Path]:
    """Give the paths that end like an image's; folders that cannot be read are noted."""

    def note(error: OSError) -> None:
        below = Path(error.filename).relative_to(folder).as_posix()
        if below == ".":
            raise error
        listing.unseen.add(unicodedata.normalize("NFC", below))
        listing.reasons[f"{printable(below)}/"] = f"The folder cannot be read: {error.strerror}."

    for above, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(above, name)


def _add(listing: Listing, path: Path, below: str) -> None:
    item_id = unicodedata.normalize("NFC", below)
    try:
        state = path.stat()
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        listing.missing += is_missing
        listing.unseen.add(item_id)
        listing.reasons[printable(item_id)] = MISSING if is_missing else f"It cannot be read: {error.strerror}."
        return
    if not stat.S_ISREG(state.st_mode):
        return
    if not is_text(below):
        listing.reasons[printable(below)] = "Its name is not Unicode (UTF-8), as an id has to be: rename it."
    elif item_id in listing.found:
        listing.reasons[f"{item_id} ({path.name!a})"] = "Another file has this name in another form of Unicode."
    else:
        listing.found[item_id] = Found(item_id, path, state.st_size, state.st_mtime_ns)
