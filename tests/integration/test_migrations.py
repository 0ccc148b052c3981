"""The migrations and `service.tables` describe one schema; applying them is safe at any time and from anywhere."""

import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from migrations import upgrade_database
from service.db import Database
from service.tables import Base
from tests.rows import all_rows
from tests.scenario import post_images, register_transformation, register_version, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

# Everything that `Base.metadata` can say about a table, as the server itself spells it; the order of columns is free.
CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
}


# What a test undoes of the last migrations, to have the tables of before.
_UNDO_NEWEST = """
DROP TABLE external_events, external_reports, external_references, external_batches, external_upgrades;
ALTER TABLE upgrades DROP COLUMN smoothing, DROP COLUMN smoothed_revision, DROP COLUMN smoothed_index;
ALTER TABLE upgrades DROP COLUMN trace, DROP COLUMN canary_answered, DROP COLUMN canary_failed;
DROP TABLE blind_votes;
DROP TABLE erasures, audit;
DROP TRIGGER gallery_changed ON galleries;
DROP TRIGGER generation_changed ON generations;
DROP FUNCTION tell_gallery_changed;
DROP TABLE api_keys, browser_sessions;
ALTER TABLE galleries DROP COLUMN tenant, ADD CONSTRAINT uq_galleries_name UNIQUE (name);
ALTER TABLE model_versions DROP COLUMN tenant, ADD CONSTRAINT uq_model_versions_name UNIQUE (name);
ALTER TABLE transformations DROP COLUMN tenant;
CREATE UNIQUE INDEX uq_transformations_default ON transformations (from_version_id, to_version_id) WHERE is_default;
ALTER TABLE jobs DROP COLUMN tenant;
ALTER TABLE idempotency_keys DROP COLUMN tenant, ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (key, path);
"""
_UNDO_LAST = f"""
{_UNDO_NEWEST}
DROP TABLE backfill_events, backfill_items, backfills;
ALTER TABLE model_versions DROP COLUMN embedding_model_form, DROP COLUMN side_information_model_form;
ALTER TABLE transformations DROP COLUMN is_default;
DROP TABLE baked_queries, probe_images;
ALTER TABLE galleries DROP COLUMN probe_images;
ALTER TABLE upgrade_events DROP COLUMN note;
ALTER TABLE upgrades DROP COLUMN canary, DROP COLUMN bake, DROP COLUMN bake_ends_at, DROP COLUMN bake_result;
DROP TABLE query_vectors, judged_queries, query_sets;
ALTER TABLE upgrade_batches DROP COLUMN refused;
DROP TABLE reports, reference_pairs, shadowed_queries;
ALTER TABLE upgrades DROP COLUMN gates, DROP COLUMN observe, DROP COLUMN evaluate_seed,
    DROP COLUMN evaluate_asked_at, DROP COLUMN decision,
    ADD COLUMN evaluation JSONB;
ALTER TABLE items DROP COLUMN image_uri;
ALTER TABLE jobs DROP COLUMN speed;
DROP TABLE ingest_references, ingest_batches;
"""


def schema_of(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Return what the catalog says of every table but Alembic's own."""
    with engine.connect() as connection:
        rows = {part: connection.execute(text(query)).all() for part, query in CATALOG.items()}
    return {
        part: sorted((tuple(row) for row in found if row[0] != "alembic_version"), key=repr)
        for part, found in rows.items()
    }


def revision_of(engine: Engine) -> str:
    with engine.connect() as connection:
        revision: str = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        return revision


@pytest.fixture
def empty(database: Database) -> Engine:
    """A database without a table, Alembic's included. The extension stays: on a server of one's own, only a superuser
    may make it."""
    Base.metadata.drop_all(database.engine)
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    return database.engine


def test_the_migrations_make_the_tables_that_the_code_declares(empty: Engine) -> None:
    Base.metadata.create_all(empty)
    declared = schema_of(empty)
    Base.metadata.drop_all(empty)

    upgrade_database(empty)

    migrated = schema_of(empty)
    for part in CATALOG:
        assert migrated[part] == declared[part]


def test_migrating_again_changes_nothing(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs (kind, state) VALUES ('import', 'done')"))
    before = schema_of(database.engine), revision_of(database.engine)

    upgrade_database(database.engine)

    assert (schema_of(database.engine), revision_of(database.engine)) == before
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 1


def test_processes_that_start_at_once_migrate_one_after_the_other(empty: Engine) -> None:
    together = threading.Barrier(4)

    def start() -> None:
        together.wait()
        upgrade_database(empty)

    with ThreadPoolExecutor(4) as threads:
        for started in [threads.submit(start) for _ in range(4)]:
            started.result()

    with empty.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM alembic_version")) == 1
        assert connection.scalar(text("SELECT count(*) FROM galleries")) == 0


def test_a_migration_that_fails_says_why_and_leaves_neither_tables_nor_its_lock(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE upgrade_batches (mine int)"))
    before = schema_of(empty)

    with pytest.raises(ProgrammingError, match='relation "upgrade_batches" already exists'):
        upgrade_database(empty)

    assert schema_of(empty) == before
    with empty.connect() as connection:
        locks = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory'"
        assert connection.scalar(text(f"{locks} AND datname = current_database()")) == 0


def test_rows_of_before_say_how_often_they_were_transformed_and_that_their_error_is_not_known(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    post_images(gallery, range(2))
    upgrade_id = start_upgrade(gallery, "v2")
    post_images(gallery, [2])
    run_until(worker, gallery, upgrade_id, "ready")
    generations = [rows.embedding for rows in all_rows(worker, upgrade_id)]
    with worker.database.engine.begin() as connection:
        connection.execute(text(_UNDO_LAST))
        for number in connection.scalars(text("SELECT id FROM generations")).all():
            connection.execute(text(f"ALTER TABLE embeddings_{number} DROP COLUMN hops, DROP COLUMN uncertainty"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))
        connection.execute(
            text(
                "INSERT INTO generations (gallery_id, model_version_id, has_side_information, state)"
                " SELECT id, 1, false, 'dropped' FROM galleries"
            )
        )

    upgrade_database(worker.database.engine)

    old, new = all_rows(worker, upgrade_id)
    assert (old.hops.tolist(), old.uncertainty.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert new.hops.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(new.uncertainty, np.array([np.nan, np.nan, 0], np.float32))
    for before, after in zip(generations, (old, new), strict=True):
        np.testing.assert_array_equal(after.embedding, before)
    post_images(gallery, [3])
    assert all_rows(worker, upgrade_id)[1].hops.tolist() == [1, 1, 0, 0]


def test_galleries_of_before_get_the_number_of_their_items_and_are_searched_for_items(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(_UNDO_LAST))
        connection.execute(text("ALTER TABLE galleries DROP COLUMN items, DROP COLUMN task"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0005'"))
        connection.execute(
            text(
                "INSERT INTO galleries (name, metric, dtype, thumbnails) SELECT n, 'l2', 'float16', false"
                " FROM unnest(ARRAY['none', 'two']) n"
            )
        )
        connection.execute(
            text(
                "INSERT INTO items (gallery_id, external_id, revision, deleted_at)"
                " SELECT g.id, n, n, CASE n WHEN 3 THEN now() END FROM galleries g, generate_series(1, 3) n"
                " WHERE g.name = 'two'"
            )
        )

    upgrade_database(database.engine)

    with database.reading() as connection:
        found = connection.execute(text("SELECT name, items, task FROM galleries ORDER BY name")).all()
    assert found == [("none", 0, "instance"), ("two", 2, "instance")]


def test_ids_of_before_become_canonical_and_those_that_would_be_one_stay_two(gallery: TestClient) -> None:
    database: Database = gallery.app.state.parts.database  # type: ignore[attr-defined]  # the application is wrapped by none
    alone, twice = (unicodedata.normalize("NFD", name) for name in ("Ä alone", "Ä twice"))
    composed = unicodedata.normalize("NFC", twice)
    post_images(gallery, range(3))
    with database.engine.begin() as connection:
        for number, name in enumerate((alone, twice, composed)):
            rename = text("UPDATE items SET external_id = :name WHERE external_id = :before")
            connection.execute(rename, {"name": name, "before": f"image-{number}.png"})
        connection.execute(text(_UNDO_NEWEST))
        connection.execute(text("ALTER TABLE upgrade_batches DROP COLUMN refused"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0016'"))

    upgrade_database(database.engine)

    items = [item["id"] for item in gallery.get("/v1/galleries/g/items").json()["items"]]
    assert items == [unicodedata.normalize("NFC", alone), twice, composed]
    assert gallery.get(f"/v1/galleries/g/items/{alone}").json()["metadata"] == {"seed": 0}
    assert gallery.get(f"/v1/galleries/g/items/{twice}").json()["metadata"] == {"seed": 1}
    assert gallery.delete(f"/v1/galleries/g/items/{twice}").status_code == 204
    assert gallery.get(f"/v1/galleries/g/items/{twice}").json()["metadata"] == {"seed": 2}
