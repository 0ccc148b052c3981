"""The whole way, with the API in process and the worker's steps called one by one."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from models.artifacts import load_transformation_network
from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import get_stored_generation
from service.domain.upgrade.upgrades import get_upgrade
from service.vectors.rows import EmbeddingRows, Origin
from tests.networks import transformation_bytes
from tests.rows import all_rows
from tests.scenario import (
    DIMS,
    create_gallery,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
)
from tests.working import run_until
from workers.app import WorkerParts


def answer_by(client: TestClient, version: str, seed: int, k: int = 3) -> dict[str, Any]:
    """Search until the replica has flipped: it loads an automatic cutover's generation within its follow interval."""
    for _ in range(100):
        answer = search(client, seed, k=k)
        if answer["model_version"] == version:
            return answer
        time.sleep(0.05)
    raise AssertionError(answer)


def prepare(client: TestClient, *versions: str) -> None:
    for version in versions:
        register_version(client, version)
    for before, after in pairwise(versions):
        register_transformation(client, before, after)
    create_gallery(client, version=versions[0])


def test_an_upgrade_moves_every_row_by_h_and_g_and_answers_by_the_new_version(
    client: TestClient, worker: WorkerParts
) -> None:
    prepare(client, "v1", "v2")
    post_images(client, range(30))
    before = search(client, 5)

    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade_id, "live")

    after = answer_by(client, "v2", 5)
    assert before["model_version"] == "v1"
    assert before["neighbors"][0]["id"] == "image-5.png"
    assert before["neighbors"][0]["distance"] == pytest.approx(0, abs=1e-2)
    assert {neighbor["origin"] for neighbor in after["neighbors"]} == {"transformed"}
    old, new = all_rows(worker, upgrade_id)
    expected_h, expected_g = offline(old)
    np.testing.assert_allclose(new.embedding.astype(np.float32), expected_h, atol=1e-3, rtol=1e-3)
    assert new.side_information is not None
    np.testing.assert_allclose(new.side_information.astype(np.float32), expected_g, atol=1e-3, rtol=1e-3)
    assert (new.revision == old.revision).all()


def offline(old: EmbeddingRows) -> tuple[np.ndarray, np.ndarray]:
    """Return h and g of the old rows, computed without the service."""
    (from_dim, from_side), (to_dim, to_side) = DIMS["v1"], DIMS["v2"]
    assert to_side is not None
    h = load_transformation_network(
        transformation_bytes(from_dim, from_side, to_dim, seed=7),
        from_dim=from_dim,
        side_information_dim=from_side,
        to_dim=to_dim,
    )
    g = load_transformation_network(
        transformation_bytes(from_dim, from_side, to_side, seed=8),
        from_dim=from_dim,
        side_information_dim=from_side,
        to_dim=to_side,
    )
    assert old.side_information is not None
    embedding, side = old.embedding.astype(np.float32), old.side_information.astype(np.float32)
    return h(embedding, side), g(embedding, side)


def test_images_ingested_during_an_upgrade_are_encoded_in_both_generations(
    client: TestClient, worker: WorkerParts
) -> None:
    prepare(client, "v1", "v2")
    post_images(client, range(10))
    upgrade_id = start_upgrade(client, "v2")

    post_images(client, range(8, 15))
    run_until(worker, client, upgrade_id, "ready")

    _, new = all_rows(worker, upgrade_id)
    assert len(new) == 15
    assert (new.origin == Origin.ENCODED).sum() == 7


def test_the_candidate_can_be_asked_before_its_cutover(client: TestClient, worker: WorkerParts) -> None:
    prepare(client, "v1", "v2")
    post_images(client, range(10))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")

    active, candidate = search(client, 3), search(client, 3, generation="next")

    assert (active["model_version"], candidate["model_version"]) == ("v1", "v2")
    assert len(candidate["neighbors"]) == 3


def test_rollback_answers_by_the_old_version_and_has_what_was_written_since(
    client: TestClient, worker: WorkerParts
) -> None:
    prepare(client, "v1", "v2")
    post_images(client, range(10))
    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade_id, "live")
    post_images(client, [50])
    assert client.delete("/v1/galleries/g/items/image-0.png").status_code == 204

    rolled_back = client.post(f"/v1/upgrades/{upgrade_id}/rollback")

    assert rolled_back.json()["state"] == "rolled_back"
    answer = search(client, 50, k=20)
    assert answer["model_version"] == "v1"
    assert answer["neighbors"][0]["id"] == "image-50.png"
    assert "image-0.png" not in {neighbor["id"] for neighbor in answer["neighbors"]}
    assert len(answer["neighbors"]) == 10


def test_finalize_drops_the_way_back(client: TestClient, worker: WorkerParts) -> None:
    prepare(client, "v1", "v2")
    post_images(client, range(5))
    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade_id, "live")

    finalized = client.post(f"/v1/upgrades/{upgrade_id}/finalize")

    assert finalized.json()["state"] == "finalized"
    assert client.post(f"/v1/upgrades/{upgrade_id}/rollback").status_code == 409
    assert search(client, 1)["model_version"] == "v2"


def test_sequential_upgrades_go_through_h_and_g(client: TestClient, worker: WorkerParts) -> None:
    prepare(client, "v1", "v2", "v3")
    post_images(client, range(12))
    first = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, first, "live")
    client.post(f"/v1/upgrades/{first}/finalize")

    second = start_upgrade(client, "v3", cutover="auto")
    run_until(worker, client, second, "live")

    assert len(answer_by(client, "v3", 4, k=12)["neighbors"]) == 12


def test_two_hops_at_once_end_where_two_upgrades_would(client: TestClient, worker: WorkerParts) -> None:
    prepare(client, "v1", "v2", "v3")
    post_images(client, range(12))

    upgrade_id = start_upgrade(client, "v3", cutover="auto")
    run_until(worker, client, upgrade_id, "live")

    legs = client.get(f"/v1/upgrades/{upgrade_id}").json()["path"]
    assert [len(leg["transformations"]) for leg in legs] == [2]
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
        target = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)
        assert missing_items(session, target.key) == []
    assert target.vector_format.side_information_dim is None
