"""Generations: their tables and their formats. `service.domain.gallery.current_rows` says which rows are current."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg.errors import UndefinedTable
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from service.db import driver_connection
from service.domain.generation_stage import STORED, TRANSITIONS, GenerationAction, GenerationStage
from service.domain.jobs import end_jobs_left_running
from service.domain.upgrade_state import State
from service.errors import Conflict, Gone
from service.index.protocol import Metric
from service.index.served import GenerationGone
from service.tables import (
    Gallery,
    Generation,
    Item,
    ModelVersion,
    Upgrade,
    create_embeddings_table,
    embeddings_table,
)
from service.vectors.copy import write_rows
from service.vectors.rows import EmbeddingRows, Origin, VectorFormat


class NoSuchGeneration(Gone):
    """The gallery does not keep the generation that was asked for by its id."""


class NoNextGeneration(Conflict):
    """No upgrade of the gallery is open, or its candidate has no index to ask yet."""


@dataclass(frozen=True)
class GenerationKey:
    """Which generation, of which gallery."""

    gallery_id: int
    generation_id: int


@dataclass(frozen=True)
class StoredGeneration:
    """A generation that has a table, its model version, and the byte format of its rows."""

    id: int
    gallery_id: int
    metric: Metric
    version: ModelVersion
    vector_format: VectorFormat
    state: GenerationStage

    @property
    def key(self) -> GenerationKey:
        return GenerationKey(self.gallery_id, self.id)

    @property
    def table(self) -> str:
        return embeddings_table(self.id)


def add_generation(
    session: Session,
    gallery: Gallery,
    version: ModelVersion,
    *,
    state: GenerationStage,
    has_side_information: bool,
    parent_generation_id: int | None = None,
    transformation_id: int | None = None,
) -> Generation:
    """Create a generation and its empty table."""
    generation = Generation(
        gallery_id=gallery.id,
        model_version_id=version.id,
        parent_generation_id=parent_generation_id,
        transformation_id=transformation_id,
        has_side_information=has_side_information,
        state=state,
    )
    session.add(generation)
    session.flush()  # its id names the table

    create_embeddings_table(session, generation.id, format_of(gallery, generation, version))
    return generation


def change_generation(session: Session, generation_id: int, action: GenerationAction) -> None:
    """Move the generation's row: the only function that does. Its gallery's row is held."""
    sources, target = TRANSITIONS[action]
    moved = session.scalar(
        update(Generation)
        .where(Generation.id == generation_id, Generation.state.in_(sources))
        .values(state=target)
        .returning(Generation.id)
    )
    if moved is None:
        raise RuntimeError(f"Generation {generation_id} cannot {action}: it was dropped.")


def drop_generation(session: Session, generation_id: int) -> None:
    """Give a generation up: nothing writes to it any more. Its row stays as history.

    `service.domain.indexes.removal` removes its table and its index after this transaction, because dropping a table
    waits for whoever still reads it.
    """
    change_generation(session, generation_id, GenerationAction.DROP)
    end_jobs_left_running(session, generation_id)


def format_of(gallery: Gallery, generation: Generation, version: ModelVersion) -> VectorFormat:
    """Return the byte format of a generation's rows."""
    side_dim = version.side_information_dim if generation.has_side_information else None
    needs_direction = gallery.metric == "cosine" or version.normalize
    return VectorFormat(version.embedding_dim, side_dim, gallery.dtype, needs_direction)


def generation_stage(session: Session, gallery_id: int, generation_id: int) -> GenerationStage | None:
    """Return the state of a generation, None where the gallery never had it."""
    query = select(Generation.state).where(Generation.id == generation_id, Generation.gallery_id == gallery_id)
    return session.scalar(query)


def stored_generations(session: Session, gallery_id: int) -> list[StoredGeneration]:
    """Return the generations that have a table, by id: every one of them takes the gallery's writes."""
    query = (
        select(Gallery, Generation, ModelVersion)
        .join(Generation, Generation.gallery_id == Gallery.id)
        .join(ModelVersion, ModelVersion.id == Generation.model_version_id)
        .where(Gallery.id == gallery_id, Generation.state.in_(STORED))
        .order_by(Generation.id)
    )
    return [
        StoredGeneration(
            generation.id,
            gallery.id,
            gallery.metric,
            version,
            format_of(gallery, generation, version),
            generation.state,
        )
        for gallery, generation, version in session.execute(query)
    ]


def get_stored_generation(session: Session, gallery_id: int, generation_id: int) -> StoredGeneration:
    """Return one stored generation, or raise `GenerationGone`."""
    for generation in stored_generations(session, gallery_id):
        if generation.id == generation_id:
            return generation
    raise GenerationGone(f"Generation {generation_id} was dropped.")


@contextmanager
def gone_if_dropped() -> Iterator[None]:
    """Raise `GenerationGone` for a table that is missing: its generation was dropped since it was looked up."""
    try:
        yield
    except (ProgrammingError, UndefinedTable) as error:  # COPY raises the driver's own errors
        original = error.orig if isinstance(error, ProgrammingError) else error
        if not isinstance(original, UndefinedTable):
            raise
        raise GenerationGone(f"A generation was dropped: {error}") from error


def previous_generation(session: Session, active_generation_id: int | None) -> int | None:
    """Return the generation that a rollback of the live upgrade would make active again."""
    query = select(Upgrade.from_generation_id).where(
        Upgrade.to_generation_id == active_generation_id, Upgrade.state == State.LIVE
    )
    return session.scalar(query)


def stage_embeddings(session: Session, staging: str, rows: EmbeddingRows, vector_format: VectorFormat) -> None:
    """COPY rows into a new temporary table named `staging`, gone at the end of the transaction."""
    create_staging(session, staging, vector_format)
    write_rows(driver_connection(session), staging, rows, vector_format)


def create_staging(session: Session, staging: str, vector_format: VectorFormat) -> None:
    """Create a temporary table for a generation's rows, gone at the end of the transaction."""
    columns = ", ".join(f"{name} {sql_type}" for name, sql_type in vector_format.sql_types.items())
    session.execute(text(f"CREATE TEMP TABLE {staging} ({columns}) ON COMMIT DROP"))


def columns_of(vector_format: VectorFormat) -> str:
    """Return the columns that follow item_id and revision."""
    return ", ".join(vector_format.column_names[2:])


def known_uncertainty(row: str) -> str:
    """Return the SQL of a row's uncertainty as it is told: NULL where h did not make the row, or does not say."""
    return f"CASE {row}.origin WHEN {int(Origin.TRANSFORMED)} THEN nullif({row}.uncertainty, 'NaN') END"


def upsert_clause(table: str, vector_format: VectorFormat) -> str:
    """Return the ON CONFLICT clause under which an older row never replaces a newer or equal one.

    So work that runs twice, or too late, has the effect of having run once (promise 4), and a transformed row never
    overwrites an encoded row of the same revision.
    """
    assignments = ", ".join(f"{column} = excluded.{column}" for column in vector_format.column_names[1:])
    return f"ON CONFLICT (item_id) DO UPDATE SET {assignments} WHERE {table}.revision < excluded.revision"


def count_rows(session: Session, stored: StoredGeneration) -> int:
    """Return how many rows the generation's table has, current or not."""
    return session.scalar(text(f"SELECT count(*) FROM {stored.table}")) or 0


def count_live(session: Session, gallery_id: int) -> int:
    """Return how many items of the gallery are not deleted."""
    query = select(func.count()).where(Item.gallery_id == gallery_id, Item.deleted_at.is_(None))
    return session.scalar(query) or 0
