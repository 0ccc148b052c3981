"""What replicas serve: the index of a generation with the version that its queries need, where it is read, and how it
follows the rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from service.index.protocol import Ids, VectorIndex, Vectors


@dataclass(frozen=True)
class GenerationState:
    """What the rows say about one generation; `is_next` while an open upgrade still derives it. `index_sha256` is the
    digest of its index file, if it has one."""

    id: int
    version_name: str
    is_next: bool
    index_sha256: str | None


@dataclass(frozen=True)
class GalleryState:
    id: int
    revision: int
    active_generation_id: int
    generations: tuple[GenerationState, ...]


class NotServed(LookupError):
    """No generation of the gallery is loaded here: the gallery has gone, or its generations just changed."""


class GenerationGone(LookupError):
    """The generation was dropped: its upgrade was cancelled, rolled back or finalized meanwhile."""


class GenerationSource(Protocol):
    """Where replicas read rows; every call may raise `GenerationGone`."""

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        """Return the state of every gallery, or of one."""

    def open(self, gallery_id: int, generation_id: int) -> "ServedGeneration":
        """Return a generation with its index, and with the revision that the index has followed to."""

    def open_file(self, gallery_id: int, generation_id: int) -> "ServedGeneration | None":  # noqa: ARG002 - FAISS's uses them
        """Return a generation with the index of its file, or None where it has no file that is to be loaded here."""
        return None

    def follow(self, served: "ServedGeneration") -> Ids:
        """Bring a served index to what is committed by now, its pending rows included; return the live items that have
        no current row yet."""


@dataclass
class ServedGeneration:
    """The serving pair: the index of one generation, and the version whose encoder its queries need.

    `revision` is how far the index has followed the gallery; `pending` are live items without a current row here yet.
    Until the cutover, their rows may still come, without a new revision; `is_settled` once they were looked for after.
    `index_sha256` is the digest of the newest index file that was loaded here, or that could not be.
    """

    gallery_id: int
    generation_id: int
    version: Any
    index: VectorIndex
    revision: int
    index_sha256: str | None = None
    pending: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    is_settled: bool = False


def follow(source: GenerationSource, served: ServedGeneration, to_revision: int, *, look_for_pending: bool) -> None:
    """Apply to one index what changed since its revision, and pending rows that are current by now."""
    if served.revision >= to_revision and not (look_for_pending and len(served.pending)):
        return
    served.pending = source.follow(served)
    served.revision = max(served.revision, to_revision)


def apply_changes(index: VectorIndex, touched: Ids, added: Ids, vectors: Vectors) -> None:
    """Let `added` ids (N,) with their vectors (N, D) replace what is there, and the other `touched` ids go."""
    gone = difference(touched, added)
    if len(gone):
        index.remove(gone)
    if len(added):  # replaces, so that an item is never missing from one search in between
        index.add(added, vectors)


def difference(ids: Sequence[int] | Ids, other: Sequence[int] | Ids) -> Ids:
    """Return the sorted ids that are in the first and not in the second; neither has an id twice.

    To find the unique ones of a million ids takes NumPy seconds.
    """
    return np.sort(np.setdiff1d(np.asarray(ids, np.int64), np.asarray(other, np.int64), assume_unique=True))
