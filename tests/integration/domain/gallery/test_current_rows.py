"""Which rows are current, against a plain computation over random items and rows."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, text
from sqlalchemy.orm import Session

from service.db import Database, driver_connection
from service.domain.gallery.current_rows import (
    delete_orphans,
    first_missing_between,
    is_current,
    lacks_current,
    live_ids,
    missing_items,
    read_current_vectors,
)
from service.domain.gallery.generations import StoredGeneration, add_generation, get_stored_generation
from service.domain.generation_stage import GenerationStage
from service.tables import Gallery, Item, ModelVersion
from service.vectors.copy import write_rows
from service.vectors.rows import EmbeddingRows
from tests.rows import rows_of

ITEMS, DIM = 80, 3
RANGES = [(0, ITEMS), (0, 30), (30, 31), (30, 60), (50, ITEMS), (ITEMS, ITEMS + 10), (20, 20)]


@dataclass(frozen=True)
class Drawn:
    """An item, and its row's revision; None where it has no row."""

    id: int
    revision: int
    deleted: bool
    row: int | None
    vector: NDArray[np.float32]

    @property
    def current(self) -> bool:
        return not self.deleted and self.row == self.revision

    @property
    def missing(self) -> bool:
        return not self.deleted and self.row != self.revision

    def within(self, after: int, up_to: int) -> bool:
        return after < self.revision <= up_to


@dataclass(frozen=True)
class Rows:
    """A gallery's items, by id, and the generation that has some of their rows."""

    items: list[Drawn]
    stored: StoredGeneration


def draw(seed: int) -> list[Drawn]:
    """Return items whose revisions are in another order than their ids. Deleted ones may have a row too."""
    generator = np.random.default_rng(seed)
    drawn = []
    for id_, revision in enumerate(map(int, generator.permutation(np.arange(1, ITEMS + 1))), start=101):
        row = [revision, revision, int(generator.integers(0, revision)), None][generator.integers(4)]
        vector = generator.standard_normal(DIM).astype(np.float32)
        drawn.append(Drawn(id_, revision, bool(generator.random() < 0.25), row, vector))
    return drawn


def add_gallery(session: Session, name: str, items: list[Drawn]) -> StoredGeneration:
    """Store a gallery with these items and their rows."""
    version = ModelVersion(
        name=name,
        embedding_dim=DIM,
        normalize=False,
        preprocessing={},
        embedding_model_digest="0",
        embedding_model_kind="safetensors",
    )
    gallery = Gallery(name=name, metric="l2", dtype="float32", thumbnails=False)
    session.add_all([version, gallery])
    session.flush()  # the items and the generation name their ids
    for item in items:
        deleted_at = func.now() if item.deleted else None
        session.add(
            Item(
                id=item.id,
                gallery_id=gallery.id,
                external_id=str(item.id),
                revision=item.revision,
                deleted_at=deleted_at,
            )
        )
    session.flush()  # COPY goes past the session

    generation = add_generation(session, gallery, version, state=GenerationStage.COMPLETE, has_side_information=False)
    stored = get_stored_generation(session, gallery.id, generation.id)
    with_row = [item for item in items if item.row is not None]
    rows = EmbeddingRows(
        item_id=np.array([item.id for item in with_row], np.int64),
        revision=np.array([item.row for item in with_row], np.int64),
        origin=np.ones(len(with_row), np.int16),
        hops=np.zeros(len(with_row), np.int16),
        uncertainty=np.zeros(len(with_row), np.float32),
        embedding=np.array([item.vector for item in with_row], np.float32).reshape(-1, DIM),
        side_information=None,
    )
    write_rows(driver_connection(session), stored.table, rows, stored.vector_format)
    return stored


@pytest.fixture(params=range(3))
def drawn(request: pytest.FixtureRequest, database: Database) -> Rows:
    """A gallery of random items and rows, beside another one with items of its own."""
    items = draw(seed=request.param)
    with database.session_scope() as session:
        add_gallery(session, "other", [Drawn(id_, id_, False, None, np.zeros(DIM, np.float32)) for id_ in (1, 2)])
        return Rows(items, add_gallery(session, "drawn", items))


def test_a_row_is_current_with_its_items_revision_while_the_item_lives(database: Database, drawn: Rows) -> None:
    query = f"SELECT e.item_id FROM {drawn.stored.table} e JOIN items i ON {is_current('e')} ORDER BY 1"

    with database.session_scope() as session:
        found = session.scalars(text(query)).all()

    assert found == [item.id for item in drawn.items if item.current]


def test_an_item_lacks_a_current_row_without_one_of_its_revision_among_those_looked_at(
    database: Database, drawn: Rows
) -> None:
    lacking = lacks_current(drawn.stored.table, "thing", within="c.item_id <= 140")
    query = f"SELECT id FROM items thing WHERE gallery_id = :gallery AND deleted_at IS NULL AND {lacking} ORDER BY 1"

    with database.session_scope() as session:
        found = session.scalars(text(query), {"gallery": drawn.stored.gallery_id}).all()

    assert found == [item.id for item in drawn.items if item.missing or (item.current and item.id > 140)]


@pytest.mark.parametrize("after", [0, 1, 40, ITEMS])
def test_missing_items_are_the_live_ones_changed_since_without_a_current_row(
    database: Database, drawn: Rows, after: int
) -> None:
    with database.session_scope() as session:
        found = missing_items(session, drawn.stored.key, after)

    assert found == [item.id for item in drawn.items if item.missing and item.revision > after]


def test_the_lowest_revision_is_found_of_items_that_are_missing_within_a_range(database: Database, drawn: Rows) -> None:
    with database.session_scope() as session:
        found = [first_missing_between(session, drawn.stored.key, after, up_to) for after, up_to in RANGES]

    for (after, up_to), answer in zip(RANGES, found, strict=True):
        revisions = [item.revision for item in drawn.items if item.missing and item.within(after, up_to)]
        assert answer == min(revisions, default=None)


@pytest.mark.parametrize(("after", "up_to"), RANGES)
def test_only_rows_of_items_that_were_deleted_within_the_range_are_orphans(
    database: Database, drawn: Rows, after: int, up_to: int
) -> None:
    with database.session_scope() as session:
        delete_orphans(session, drawn.stored.key, after, up_to)
        left = rows_of(session, drawn.stored)

    with_row = [item for item in drawn.items if item.row is not None]
    expected = [item.id for item in with_row if not (item.deleted and item.within(after, up_to))]
    assert left.item_id.tolist() == expected


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
def test_vectors_are_read_of_those_ids_that_have_a_current_row(
    database: Database, drawn: Rows, rows_per_chunk: int
) -> None:
    asked = [item for item in drawn.items if item.id % 3 == 0]
    ids = np.array([999_999, *reversed([item.id for item in asked]), 1], np.int64)

    with database.session_scope() as session:
        found, vectors = read_current_vectors(session, drawn.stored, rows_per_chunk, ids)

    current = [item for item in asked if item.current]
    assert found.tolist() == [item.id for item in current]
    np.testing.assert_array_equal(vectors, np.array([item.vector for item in current]))


@pytest.mark.parametrize("ids", [[], [999_999]])
def test_of_ids_without_a_current_row_no_vectors_are_read(database: Database, drawn: Rows, ids: list[int]) -> None:
    with database.session_scope() as session:
        found, vectors = read_current_vectors(session, drawn.stored, 7, np.array(ids, np.int64))

    assert (found.shape, found.dtype.name) == ((0,), "int64")
    assert (vectors.shape, vectors.dtype.name) == ((0, DIM), "float32")


def test_live_ids_are_those_of_the_gallerys_items_that_are_not_deleted(database: Database, drawn: Rows) -> None:
    with database.session_scope() as session:
        found = live_ids(session, drawn.stored.gallery_id)
        of_no_gallery = live_ids(session, 999)

    assert sorted(found.tolist()) == [item.id for item in drawn.items if not item.deleted]
    assert (of_no_gallery.shape, of_no_gallery.dtype.name) == ((0,), "int64")
