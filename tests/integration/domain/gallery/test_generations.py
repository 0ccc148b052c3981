"""Where PostgreSQL keeps the rows of a generation's table, by their width; and a generation's change of state."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database, driver_connection
from service.domain.gallery.generations import change_generation, drop_generation, stored_generations
from service.domain.generation_stage import GenerationAction
from service.tables import create_embeddings_table
from service.vectors.copy import read_rows, write_rows
from service.vectors.rows import EmbeddingRows, VectorFormat
from tests.scenario import create_upgradable_gallery

COUNT = 20


@pytest.mark.parametrize(
    ("dim", "in_one_piece"), [(128, True), (512, True), (900, True), (1_024, False), (2_048, False), (4_000, False)]
)
def test_rows_of_any_width_come_back_and_those_of_half_a_page_stay_in_one_piece(
    database: Database, dim: int, in_one_piece: bool
) -> None:
    vector_format = VectorFormat(dim, dim, "float16")
    rows = EmbeddingRows(
        item_id=np.arange(COUNT),
        revision=np.ones(COUNT, np.int64),
        origin=np.ones(COUNT, np.int16),
        hops=np.zeros(COUNT, np.int16),
        uncertainty=np.zeros(COUNT, np.float32),
        embedding=np.random.default_rng(0).standard_normal((COUNT, dim)).astype(np.float16),
        side_information=np.random.default_rng(1).standard_normal((COUNT, dim)).astype(np.float16),
    )
    with database.session_scope() as session:
        create_embeddings_table(session, 1, vector_format)
        write_rows(driver_connection(session), "embeddings_1", rows, vector_format)
        outside = session.scalars(
            text("SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'embeddings_1'")
        ).one()
        query = "SELECT * FROM embeddings_1 ORDER BY item_id"
        found = EmbeddingRows.concatenate(list(read_rows(driver_connection(session), query, (), vector_format)))

    assert (outside == 0) is in_one_piece
    assert found.side_information is not None
    assert rows.side_information is not None
    np.testing.assert_array_equal(found.embedding, rows.embedding)
    np.testing.assert_array_equal(found.side_information, rows.side_information)


def test_a_dropped_generation_stays_dropped(client: TestClient, database: Database) -> None:
    create_upgradable_gallery(client)
    with database.session_scope() as session:
        (generation,) = stored_generations(session, 1)
        drop_generation(session, generation.id)

    with pytest.raises(RuntimeError, match="it was dropped"), database.session_scope() as session:
        change_generation(session, generation.id, GenerationAction.COMPLETE)

    with database.session_scope() as session:
        assert stored_generations(session, 1) == []
