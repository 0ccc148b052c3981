"""What endpoints are given: the process's parts, a session that commits before the answer, and checked names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request
from pydantic import StringConstraints

from service.access.known_keys import KnownKeys
from service.access.quotas import QuotaBook
from service.api.admission import Admission
from service.api.event_streams import EventStreams
from service.api.vector_queries import VectorQueries
from service.blobs import BlobStore
from service.connectors.named import NamedStores
from service.db import Database
from service.db import Session as Session  # what views of rows take
from service.domain.figures import Figures
from service.domain.gallery.exports import Exports
from service.domain.gallery.writes import GalleryWriter
from service.domain.indexes.engine import IndexEngine
from service.domain.indexes.query_samples import QuerySamples
from service.domain.judging.drift import DriftWatch
from service.domain.judging.shadowed_queries import Shadowing
from service.domain.search.queries import Search
from service.domain.upgrade.actions import UpgradeActions
from service.image_sources.source import ImageSource
from service.index.replica import Replicas
from service.networks.micro_batching import ImageQueryMetrics
from service.settings import Settings

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
IdPath = Annotated[int, Path(ge=1, lt=2**63)]


@dataclass(frozen=True)
class Parts:
    """Everything one API process holds, made once at start."""

    settings: Settings
    database: Database
    keys: KnownKeys
    quotas: QuotaBook
    blobs: BlobStore
    engine: IndexEngine
    replicas: Replicas
    writer: GalleryWriter
    exports: Exports
    search: Search
    vector_queries: VectorQueries
    query_samples: QuerySamples
    shadowing: Shadowing
    drift: DriftWatch
    image_query_metrics: ImageQueryMetrics
    image_queries: Admission
    event_streams: EventStreams
    images: ImageSource
    upgrade_actions: UpgradeActions
    figures: Figures
    stores: NamedStores


async def parts_of(request: Request) -> Parts:
    """Return the parts; not `def`, which would wait for a thread."""
    return cast("Parts", request.app.state.parts)


PartsDependency = Annotated[Parts, Depends(parts_of)]


def _session(parts: PartsDependency) -> Iterator[Session]:
    with parts.database.session_scope() as session:
        yield session


# With the default scope the commit would come after the answer, and one that fails would still have said 200.
SessionDependency = Annotated[Session, Depends(_session, scope="function")]
