"""Upgrades of a gallery that was upgraded before: which stored generation they start from, and by which networks."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from models.artifacts import load_transformation_network
from service.domain.generations import StoredGeneration, get_stored_generation
from service.queue import celery_application
from service.settings import Settings
from service.vectors.rows import EmbeddingRows
from tests.networks import transformation_bytes
from tests.rows import rows_of
from tests.scenario import (
    DIMS,
    create_gallery,
    post_images,
    register_transformation,
    register_version,
    start_upgrade,
    state_of,
)
from workers.app import WorkerParts, make_worker_parts
from workers.upgrading import advance_upgrade


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


@pytest.fixture
def upgraded(client: TestClient, worker: WorkerParts) -> TestClient:
    """A gallery of 12 images that went from v1 to v2 and can still go back; v3 is registered."""
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    post_images(client, range(12))
    run_to_live(client, worker, start_upgrade(client, "v2", cutover="auto"))
    return client


def run_to_live(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    for _ in range(30):
        advance_upgrade(worker, upgrade_id)
        if state_of(client, upgrade_id) == "live":
            return
    raise AssertionError(client.get(f"/v1/upgrades/{upgrade_id}").json())


def generation_rows(worker: WorkerParts, generation_id: int) -> EmbeddingRows:
    with worker.database.session_scope() as session:
        stored: StoredGeneration = get_stored_generation(session, 1, generation_id)
        return rows_of(session, stored)


def by_h(rows: EmbeddingRows, before: str, after: str) -> np.ndarray:
    """Return h of stored rows, computed here."""
    (from_dim, from_side), (to_dim, _) = DIMS[before], DIMS[after]
    h = load_transformation_network(
        transformation_bytes(from_dim, from_side, to_dim, seed=7),
        from_dim=from_dim,
        side_information_dim=from_side,
        to_dim=to_dim,
    )
    assert rows.side_information is not None
    return h(rows.embedding.astype(np.float32), rows.side_information.astype(np.float32))


def test_a_direct_transformation_from_a_kept_generation_is_taken(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v1", "v3")

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto")
    run_to_live(upgraded, worker, upgrade_id)

    assert [leg["generation"] for leg in upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"]] == [1]
    expected = by_h(generation_rows(worker, 1), "v1", "v3")
    found = generation_rows(worker, 3).embedding.astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=5e-3)


def test_items_that_only_the_active_generation_has_take_its_own_way(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v1", "v3")
    register_transformation(upgraded, "v2", "v3")
    assert import_under_v2(upgraded, ["only-new"]) == 200

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto", transformation=2)
    run_to_live(upgraded, worker, upgrade_id)

    assert upgraded.get("/v1/galleries/g").json()["items"] == 13
    path = upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"]
    assert path[0] == {"generation": 1, "transformations": [2]}


def test_with_both_ways_as_short_the_active_generation_is_read(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v1", "v3")
    register_transformation(upgraded, "v2", "v3")
    import_under_v2(upgraded, ["only-new"])

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto")
    run_to_live(upgraded, worker, upgrade_id)

    assert upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"] == [{"generation": 2, "transformations": [3]}]
    expected = by_h(generation_rows(worker, 2), "v2", "v3")
    found = generation_rows(worker, 3).embedding.astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=5e-3)


def test_a_chain_of_rollbacks_goes_back_one_by_one(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v2", "v3")
    second = start_upgrade(upgraded, "v3", cutover="auto")
    run_to_live(upgraded, worker, second)
    post_images(upgraded, [77])

    too_early = upgraded.post("/v1/upgrades/1/rollback")
    answers = [upgraded.post(f"/v1/upgrades/{upgrade_id}/rollback").json() for upgrade_id in (second, 1)]

    assert too_early.status_code == 409
    assert [answer["state"] for answer in answers] == ["rolled_back", "rolled_back"]
    assert len(generation_rows(worker, 1)) == 13


def import_under_v2(client: TestClient, ids: list[str]) -> int:
    embedding_dim, side_dim = DIMS["v2"]
    assert side_dim is not None
    generator = np.random.default_rng(0)
    table = pa.table(
        {
            "id": ids,
            "embedding": list(generator.standard_normal((len(ids), embedding_dim))),
            "side_information": list(generator.standard_normal((len(ids), side_dim))),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = client.post("/v1/galleries/g/embeddings", content=sink.getvalue().to_pybytes())
    status: int = answer.status_code
    return status
