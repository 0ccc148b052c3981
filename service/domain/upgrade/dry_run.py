"""What an upgrade would take: its path, rows, bytes and seconds, from a short measured run that writes nothing."""

import time
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database, driver_connection
from service.domain import registry
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import (
    StoredGeneration,
    current_rows_query,
    get_stored_generation,
    stage_embeddings,
)
from service.domain.upgrade.batches import Transform
from service.domain.upgrade.disk import Bytes, generation_bytes
from service.domain.upgrade.paths import Leg
from service.domain.upgrade.upgrades import choose_path
from service.networks.transformations import TransformationNetworks
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, VectorFormat

_SAMPLE_ITEMS = 4_096


@dataclass(frozen=True)
class DryRun:
    """`bytes` is what the new generation adds to the database and `index_bytes` to the blob store; `seconds` is what
    one worker takes for the rows at the measured rate, without the index. None for an empty gallery."""

    legs: list[Leg]
    items: int
    bytes: int
    index_bytes: int
    measured_items: int
    seconds: float | None


def dry_run(
    database: Database,
    networks: TransformationNetworks,
    gallery_name: str,
    to_version: str,
    transformation_id: int | None,
) -> DryRun:
    """Measure reading, transforming and copying a sample on this machine; refuses what an upgrade would refuse."""
    with database.session_scope() as session:
        outline = outline_upgrade(session, gallery_name, to_version, transformation_id)
    networks.load(outline.legs[0].transformation_ids)
    measured, seconds = 0, 0.0
    for _ in range(2):  # the first one warms caches and threads
        measured, seconds = _measure(database, networks.transform, outline)
    return DryRun(
        legs=outline.legs,
        items=outline.items,
        bytes=outline.bytes.database,
        index_bytes=outline.bytes.index,
        measured_items=measured,
        seconds=outline.items * seconds / measured if measured else None,
    )


@dataclass(frozen=True)
class Outline:
    """An upgrade that could start now: its path, the generation it would make, and that one's size."""

    legs: list[Leg]
    target: StoredGeneration
    items: int
    bytes: Bytes


def outline_upgrade(session: Session, gallery_name: str, to_version: str, transformation_id: int | None) -> Outline:
    """Return what an upgrade would do; refuses what an upgrade would refuse."""
    version = registry.get_version(session, to_version)
    gallery = get_gallery(session, gallery_name)
    active, legs = choose_path(session, gallery, version, transformation_id)
    side_dim = version.side_information_dim if legs[0].gives_side_information else None
    vector_format = VectorFormat(version.embedding_dim, side_dim, active.vector_format.dtype)
    target = StoredGeneration(0, gallery.id, version, vector_format, "building")
    return Outline(legs, target, gallery.items, generation_bytes(vector_format, gallery.items))


def _measure(database: Database, transform: Transform, outline: Outline) -> tuple[int, float]:
    """Return how many rows were read, transformed and copied into a temporary table, and the seconds that it took."""
    with database.session_scope() as session:
        leg, target = outline.legs[0], outline.target
        source = get_stored_generation(session, target.gallery_id, leg.generation_id)
        began = time.perf_counter()
        rows = _read_sample(session, source)
        if rows is None:
            return 0, 0.0
        transformed = transform(rows, source, target, leg.transformation_ids)
        stage_embeddings(session, "dry_run", transformed, target.vector_format)
        session.execute(text("CREATE TEMP TABLE dry_run_rows (LIKE dry_run, PRIMARY KEY (item_id)) ON COMMIT DROP"))
        session.execute(text("INSERT INTO dry_run_rows SELECT * FROM dry_run ORDER BY item_id"))
        seconds = time.perf_counter() - began
        session.rollback()
    return len(rows), seconds


def _read_sample(session: Session, source: StoredGeneration) -> EmbeddingRows | None:
    side_information = source.vector_format.side_information_dim is not None
    query = current_rows_query(source, side_information=side_information) + sql.SQL(f" LIMIT {_SAMPLE_ITEMS}")
    chunks = list(read_rows(driver_connection(session), query, (), source.vector_format, _SAMPLE_ITEMS))
    return EmbeddingRows.concatenate(chunks) if chunks else None
