"""What an upgrade would take: its path, rows, bytes and seconds, from a short measured run that writes nothing."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database, driver_connection
from service.domain.gallery.current_rows import current_rows_query
from service.domain.gallery.generations import StoredGeneration, get_stored_generation, stage_embeddings
from service.domain.upgrade.batches import Transform
from service.domain.upgrade.paths import FoundLeg
from service.domain.upgrade.planning import Outline, WantedUpgrade, outline_upgrade
from service.domain.upgrade.upgrades import items_refused
from service.domain.upgrade.work_ahead import WorkAhead, work_ahead
from service.errors import Conflict
from service.networks.transformations import PoisonedItems
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, VectorFormat

_SAMPLE_ITEMS = 4_096
_WITHOUT_NETWORKS = (
    "Nothing encodes images for {versions}, without networks: the upgrade is judged by query sets of vectors and by"
    " references that are given as vectors, and is not_judged without them."
)


class ItemsRefused(Conflict):
    """Items of the sample cannot be upgraded."""


@dataclass(frozen=True)
class DryRun:
    """`reason` says why the path is this one. `bytes` is what the new generation adds to the database and `index_bytes`
    to the blob store; `seconds` is what one worker takes for the rows at the measured rate, without the index and
    smoothing. None for an empty gallery. `ahead` is what workers have at hand, and `seconds_ahead` is what one may take
    for it before it turns to this upgrade, as if items of other galleries took as long as those of this one. `warnings`
    are sentences on what the upgrade will want of somebody."""

    legs: list[FoundLeg]
    reason: str
    items: int
    bytes: int
    index_bytes: int
    measured_items: int
    seconds: float | None
    ahead: WorkAhead
    seconds_ahead: float | None
    warnings: list[str]


class Networks(Protocol):
    """The networks of transformations, as `service.networks.transformations.TransformationNetworks` has them."""

    def load(self, transformation_ids: Iterable[int]) -> None:
        """Have them ready."""

    def transform(self, rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
        """As `service.domain.upgrade.batches.Transform`."""


def dry_run(database: Database, networks: Networks, wanted: WantedUpgrade) -> DryRun:
    """Measure reading, transforming and copying a sample on this machine.

    Refuses what an upgrade would refuse, but for a disk that is too small, and a sample with items that cannot be
    upgraded (`ItemsRefused`, 409).
    """
    with database.session_scope() as session:
        outline = outline_upgrade(session, wanted)
        ahead = work_ahead(session)
    networks.load(outline.legs[0].transformation_ids)
    measured, seconds = 0, 0.0
    for _ in range(2):  # the first one warms caches and threads
        measured, seconds = _measure(database, networks.transform, outline)
    return DryRun(
        legs=outline.legs,
        reason=outline.reason,
        items=outline.items,
        bytes=outline.bytes.database,
        index_bytes=outline.bytes.index,
        measured_items=measured,
        seconds=outline.items * seconds / measured if measured else None,
        ahead=ahead,
        seconds_ahead=ahead.seconds(seconds / measured) if measured else None,
        warnings=_warnings(outline),
    )


def _warnings(outline: Outline) -> list[str]:
    unable = [repr(version.name) for version in (outline.active, outline.target.version) if not version.has_networks]
    return [_WITHOUT_NETWORKS.format(versions=" and ".join(unable))] if unable else []


def _measure(database: Database, transform: Transform, outline: Outline) -> tuple[int, float]:
    """Return how many rows were read, transformed and copied into a temporary table, and the seconds that it took. No
    session waits for the networks."""
    leg, target = outline.legs[0], outline.target
    with database.session_scope() as session:
        source = get_stored_generation(session, target.gallery_id, leg.generation_id)
        began = time.perf_counter()
        rows = _read_sample(session, source)
    if rows is None:
        return 0, 0.0
    try:
        transformed = transform(rows, target.vector_format, leg.transformation_ids)
    except PoisonedItems as error:
        with database.session_scope() as session:
            refusal = items_refused(session, error.reasons, len(error.reasons))
        raise ItemsRefused(f"Of a sample of {len(rows)} items, {refusal} Replace or delete them.") from error
    with database.session_scope() as session:
        stage_embeddings(session, "dry_run", transformed, target.vector_format)
        session.execute(text("CREATE TEMP TABLE dry_run_rows (LIKE dry_run, PRIMARY KEY (item_id)) ON COMMIT DROP"))
        session.execute(text("INSERT INTO dry_run_rows SELECT * FROM dry_run ORDER BY item_id"))
        seconds = time.perf_counter() - began
        session.rollback()
    return len(rows), seconds


def _read_sample(session: Session, source: StoredGeneration) -> EmbeddingRows | None:
    query = f"{current_rows_query(source, source.vector_format)} LIMIT {_SAMPLE_ITEMS}"
    chunks = list(read_rows(driver_connection(session), query, (), source.vector_format, _SAMPLE_ITEMS))
    return EmbeddingRows.concatenate(chunks) if chunks else None
