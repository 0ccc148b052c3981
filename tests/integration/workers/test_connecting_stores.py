"""Upgrades of real stores, a PostgreSQL table with pgvector and a Parquet file: as whoever searches them sees it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from gallery_upgrade.arrays import vectors_table
from service.app import create_app
from service.connectors.opening import open_store
from service.connectors.store import KeyRange, Rows, Vectors
from service.queue import celery_application
from service.settings import Settings, StoreSetting
from tests.external_upgrades import (
    STORE,
    act,
    drawn,
    register_both,
    start,
    transformed,
    view,
    work_until,
    work_until_removed,
)
from workers.app import WorkerParts, make_worker_parts
from workers.connecting import advance_external

EVERYTHING = KeyRange(None, None)
ROWS = 30


@pytest.fixture(params=["pgvector", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, database_url: str, tmp_path: Path) -> str:
    """Make a gallery of v1 in a store, and return its URL."""
    embedding, side = drawn(ROWS)
    if kind == "parquet":
        ids = [f"key-{place:03}" for place in range(ROWS)]
        pq.write_table(vectors_table(ids, embedding, side), tmp_path / "shop.parquet")
        return f"file://{tmp_path}/shop.parquet"
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE photos (id bigint PRIMARY KEY, phi vector(6), psi vector(5), label text)")
        put(connection, range(ROWS), embedding, side)
    names = {"table": "photos", "key": "id", "embedding": "phi", "side_information": "psi"}
    return f"{plain}{'&' if '?' in plain else '?'}{urlencode(names)}"


def put(connection: psycopg.Connection, keys: range, embedding: Vectors, side: Vectors) -> None:
    statement = (
        "INSERT INTO photos (id, phi, psi) VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET phi = EXCLUDED.phi, psi = EXCLUDED.psi"
    )
    for place, key in enumerate(keys):
        connection.execute(statement, [key, str(embedding[place].tolist()), str(side[place].tolist())])


@pytest.fixture
def settings(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"stores": {STORE: StoreSetting(url=url)}, "cutover_max_changes": 2})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


def rows_of(url: str) -> Rows:
    store = open_store(url)
    try:
        return store.read(EVERYTHING)
    finally:
        store.close()


def nearest(url: str, query: Vectors) -> str:
    store = open_store(url)
    try:
        return store.searched(query, 1)[0]
    finally:
        store.close()


def test_a_store_is_upgraded_switched_and_finalized(client: TestClient, worker: WorkerParts, url: str) -> None:
    transformation = register_both(client)
    before = rows_of(url)
    expected, expected_side = transformed(worker, transformation, before)

    upgrade_id = start(client)
    ready = work_until(worker, client, upgrade_id, "ready")
    old_found = nearest(url, before.embedding[4])
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")
    new_found = nearest(url, expected[7])
    for _ in range(5):
        advance_external(worker, upgrade_id)
    act(client, upgrade_id, "finalize")
    work_until_removed(worker, client, upgrade_id)

    assert (ready["verification"]["rows"], ready["verification"]["repaired_ranges"]) == (ROWS, 0)
    assert (old_found, new_found) == (before.keys[4], before.keys[7])
    after = rows_of(url)
    assert after.keys == before.keys
    np.testing.assert_allclose(after.embedding, expected, rtol=1e-4, atol=1e-4)
    assert after.side_information is not None
    assert expected_side is not None
    np.testing.assert_allclose(after.side_information, expected_side, rtol=1e-4, atol=1e-4)


def test_a_rollback_leaves_the_store_as_it_was(client: TestClient, worker: WorkerParts, url: str) -> None:
    register_both(client)
    before = rows_of(url)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")

    act(client, upgrade_id, "rollback")
    work_until_removed(worker, client, upgrade_id)

    after = rows_of(url)
    assert after.keys == before.keys
    np.testing.assert_array_equal(after.embedding, before.embedding)
    assert nearest(url, before.embedding[3]) == before.keys[3]
    assert start(client) == upgrade_id + 1


@pytest.mark.parametrize("kind", ["pgvector"])
def test_rows_that_are_written_meanwhile_are_on_the_new_side_at_the_switch(
    client: TestClient, worker: WorkerParts, url: str, database_url: str
) -> None:
    transformation = register_both(client)
    upgrade_id = start(client)
    embedding, side = drawn(12, seed=4)
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        advance_external(worker, upgrade_id)
        put(connection, range(25, 35), embedding, side)
        work_until(worker, client, upgrade_id, "ready")
        put(connection, range(2), embedding[10:], side[10:])
        connection.execute("DELETE FROM photos WHERE id = 11")
        before = rows_of(url)
        act(client, upgrade_id, "cutover")
        work_until(worker, client, upgrade_id, "live")
        found = connection.execute("SELECT id::text, phi::text FROM photos ORDER BY photos.id").fetchall()

    expected, _ = transformed(worker, transformation, before)
    assert [key for key, _ in found] == before.keys
    made = np.array([np.fromstring(vector.strip("[]"), np.float32, sep=",") for _, vector in found])
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pgvector"])
def test_a_rollback_says_how_many_rows_it_would_forget(
    client: TestClient, worker: WorkerParts, url: str, database_url: str
) -> None:
    register_both(client)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE photos SET phi = phi WHERE id = 3")
        connection.execute("INSERT INTO photos (id, phi) VALUES (99, %s)", [str([1.0] * 8)])

    refused = client.post(f"/v1/external-upgrades/{upgrade_id}/rollback")
    done = client.post(f"/v1/external-upgrades/{upgrade_id}/rollback", params={"accept_loss": True})

    assert (refused.status_code, refused.json()["type"]) == (409, "urn:gallery-upgrade:store-refused")
    assert "rows were written since the switch" in refused.json()["detail"]
    assert done.json()["state"] == "rolled_back"
    assert view(client, upgrade_id)["state"] == "rolled_back"
