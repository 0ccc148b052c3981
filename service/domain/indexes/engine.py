"""What an engine is: it holds the indexes of generations, as FAISS files that each API process loads (`faiss_engine`),
or as collections in a Milvus server that all processes share (`milvus_engine`). `choice` decides once which one it is;
who has an engine asks it, and never which one it is."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sqlalchemy.orm import Session

from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.due import DueRebuild
from service.errors import Conflict
from service.index.protocol import Ids, IndexKind
from service.index.recall import Recall
from service.index.served import GenerationSource
from service.index.smoothing import Neighbourhoods
from service.networks.encoders import Encoders
from service.tables import Json

Report = Callable[[int, int], None]  # (rows in the index, rows in all)


NO_SMOOTHING = "Rows are smoothed by an index file of FAISS, and the indexes here are collections in Milvus."


class SmoothingNotPossible(Conflict):
    """Rows cannot be smoothed by the index that there is."""


@dataclass(frozen=True)
class Build:
    """A build that is to be done: for which generation, as which job, and whom to tell how far it is.

    With `only_width`, the rows of the index that is there may stay. `progress` raises when nobody wants it any more.
    """

    generation: GenerationKey
    job_id: int
    only_width: bool
    progress: Report


@dataclass(frozen=True)
class IndexRecord:
    """What is recorded of an index, in its generation's row and as the result of its job; `of_its_kind` are the
    parameters that other kinds, or the other engine, have not."""

    kind: IndexKind
    rows: int
    seconds: float
    recall: Recall
    of_its_kind: dict[str, Any]

    def as_json(self) -> Json:
        return {
            "kind": self.kind,
            **self.of_its_kind,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            **asdict(self.recall),
        }


class IndexEngine(Protocol):
    """Where indexes are built, followed and removed; one per process. An engine inherits what it has no use for."""

    def follow(self, encoders: Encoders) -> GenerationSource:
        """Return what this process's replicas follow."""

    def build(self, build: Build) -> Json:
        """Make the generation's index, name it in the generation's row, end the job, and return what was recorded.

        Running it twice gives the same row. Raises `GenerationGone` when the job was ended meanwhile.
        """

    def find_due(self, session: Session, generation_id: int | None = None) -> DueRebuild | None:  # noqa: ARG002 - FAISS's uses them
        """Return a generation whose index is to be built anew, or that one if its is; None where there is none, as
        where indexes take changes as they are."""
        return None

    def take_out(self, generation: GenerationKey, ids: Ids) -> str | None:  # noqa: ARG002 - Milvus's uses them
        """Remove the bytes of items (N,) from a generation's index, and return a sentence on what becomes of them; None
        where the index takes no changes, and is to be built anew."""
        return None

    @property
    def can_smooth(self) -> bool:
        """Whether it has `neighbourhoods`."""
        return False

    def neighbourhoods(self, generation: GenerationKey) -> Neighbourhoods:  # noqa: ARG002 - FAISS's uses it
        """Return the rows around given ones, as the generation's index has them. Raises `SmoothingNotPossible` (409)
        where the index cannot be read, or changes with the rows."""
        raise SmoothingNotPossible(NO_SMOOTHING)

    def remove_unneeded(self, wait_seconds: float) -> None:
        """Remove the indexes that no generation needs any more, and what builds that died have left.

        Raises `Unavailable` (503) when one is in use for longer than `wait_seconds`.
        """

    def close(self) -> None:
        """Let go of connections, where there are any."""
        return
