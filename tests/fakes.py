"""Small whole stand-ins, passed in where the real thing would be.

Those that are called Watched do what the real thing does, and let a test act at a moment that it could not hit from
outside. What a test does there may raise.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

from sqlalchemy.orm import Session

from service.blobs import BlobStore
from service.db import Database
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.due import DueRebuild
from service.domain.indexes.engine import Build, IndexEngine
from service.index.protocol import Ids, SearchResult, VectorIndex, Vectors
from service.index.replica import Replicas
from service.index.served import GalleryState, GenerationSource, NotServed, ServedGeneration
from service.index.smoothing import Neighbourhoods
from service.networks.encoders import Encoders, VersionEncoder
from service.networks.micro_batching import ImageQueryMetrics, MicroBatcher
from service.networks.transformations import TransformationNetworks
from service.settings import Settings
from service.tables import ModelVersion
from service.vectors.rows import EmbeddingRows, VectorFormat

Call = Literal["galleries", "open", "open_file", "follow"]
Result = TypeVar("Result")


class RecordingQueue:
    """A `service.queue.Sender` that keeps what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[int, ...]]] = []

    def send(self, task_name: str, *arguments: int) -> None:
        self.sent.append((task_name, arguments))


class WatchedSource:
    """A `service.index.served.GenerationSource` that says which call begins and which one ends."""

    def __init__(self, source: GenerationSource) -> None:
        self._source = source
        self.before: Callable[[Call], object] = lambda call: None
        self.after: Callable[[Call], object] = lambda call: None

    def galleries(self, only: int | None = None) -> list[GalleryState]:
        return self._watched("galleries", lambda: self._source.galleries(only))

    def open(self, gallery_id: int, generation_id: int) -> ServedGeneration:
        return self._watched("open", lambda: self._source.open(gallery_id, generation_id))

    def open_file(self, gallery_id: int, generation_id: int) -> ServedGeneration | None:
        return self._watched("open_file", lambda: self._source.open_file(gallery_id, generation_id))

    def follow(self, served: ServedGeneration) -> Ids:
        return self._watched("follow", lambda: self._source.follow(served))

    def _watched(self, call: Call, make: Callable[[], Result]) -> Result:
        self.before(call)
        result = make()
        self.after(call)
        return result


class WatchedIndex:
    """A `service.index.protocol.VectorIndex`; `after_search` runs before what was found is returned."""

    def __init__(self, index: VectorIndex, after_search: Callable[[], object]) -> None:
        self._index = index
        self._after_search = after_search

    def add(self, ids: Ids, vectors: Vectors) -> None:
        self._index.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        self._index.remove(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None, *, exact: bool = False) -> SearchResult:
        found = self._index.search(queries, k, allowed, exact=exact)
        self._after_search()
        return found

    def ids(self) -> Ids:
        return self._index.ids()

    def __len__(self) -> int:
        return len(self._index)


def connectionless_parts() -> SimpleNamespace:
    """Return the parts of an API that has connected to nothing: who is served is known, and whatever asks for more
    fails."""
    return SimpleNamespace(keys=None, quotas=SimpleNamespace(concerns=lambda *_: False))


class WatchedEngine:
    """A `service.domain.indexes.engine.IndexEngine`; `meanwhile` runs once, when an index has its first rows."""

    def __init__(self, engine: IndexEngine, meanwhile: Callable[[], object]) -> None:
        self._engine = engine
        self._meanwhile = iter([meanwhile])

    def follow(self, encoders: Encoders) -> GenerationSource:
        return self._engine.follow(encoders)

    def build(self, build: Build) -> dict[str, Any]:
        def report(done: int, total: int) -> None:
            for meanwhile in self._meanwhile:
                meanwhile()
            build.progress(done, total)

        return self._engine.build(replace(build, progress=report))

    def find_due(self, session: Session, generation_id: int | None = None) -> DueRebuild | None:
        return self._engine.find_due(session, generation_id)

    def take_out(self, generation: GenerationKey, ids: Ids) -> str | None:
        return self._engine.take_out(generation, ids)

    @property
    def can_smooth(self) -> bool:
        return self._engine.can_smooth

    def neighbourhoods(self, generation: GenerationKey) -> Neighbourhoods:
        return self._engine.neighbourhoods(generation)

    def remove_unneeded(self, wait_seconds: float) -> None:
        self._engine.remove_unneeded(wait_seconds)

    def close(self) -> None:
        self._engine.close()


class WatchedEncoders(Encoders):
    """Encoders; `before` is told the model version whose φ is about to run: `of_queries` too, which then share no
    run."""

    def __init__(
        self, blobs: BlobStore, settings: Settings, before: Callable[[str], object], *, of_queries: bool = False
    ) -> None:
        super().__init__(blobs, settings)
        self._before = before
        self._of_queries = of_queries

    def get(self, version: ModelVersion) -> VersionEncoder:
        encoder = super().get(version)

        def run(inputs: Vectors) -> Vectors:
            self._before(version.name)
            return encoder.embedding_model(inputs)

        if not self._of_queries:
            return replace(encoder, embedding_model=run)
        return replace(encoder, embedding_model=run, queries=MicroBatcher(run, 1, 0.0, ImageQueryMetrics()))


class WatchedNetworks(TransformationNetworks):
    """h and g; `before` runs when a batch's rows were read, and are about to be transformed."""

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings, before: Callable[[], object]) -> None:
        super().__init__(database, blobs, settings)
        self._before = before

    def transform(self, rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
        self._before()
        return super().transform(rows, wanted, path)


class WatchedBlobs(BlobStore):
    """Named files; `written` is told where one was written that nobody knows of yet, `wanted` which one is fetched."""

    def __init__(
        self,
        url: str,
        *,
        written: Callable[[Path], object] = lambda path: None,
        wanted: Callable[[str], object] = lambda name: None,
    ) -> None:
        super().__init__(url)
        self._written = written
        self._wanted = wanted

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        def write_and_tell(path: Path) -> None:
            write(path)
            self._written(path)

        super().publish(name, write_and_tell)

    def fetch_file(self, name: str, cache: Path) -> Path:
        self._wanted(name)
        return super().fetch_file(name, cache)


class UnloadedReplicas(Replicas):
    """Replicas of a process that has loaded nothing yet when it is first asked, so many times."""

    def __init__(self, source: GenerationSource, misses: int) -> None:
        super().__init__(source, follow_every_seconds=3600.0)
        self._misses = iter(range(misses))

    def active(self, gallery_id: int, generation_id: int | None) -> ServedGeneration:
        for _ in self._misses:
            raise NotServed
        return super().active(gallery_id, generation_id)
